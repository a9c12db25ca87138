"""Run folders as a file for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder
from attnres_lab.runs.table import table


def write_table(file: Path, paths: Sequence[Path], *, rows: bool = False) -> int:
    """Write a line per run folder (``runs.table``), or per metrics row with the run's labels, as
    Parquet or CSV by the file's ending; the number of lines. Raises UserError.
    """
    if file.suffix not in (".parquet", ".csv"):
        raise UserError(f"{file}: the name must end in .parquet or .csv")
    records = table(paths)
    if rows:
        names = ("run", "state", "variant", "size", "seed")
        records = [
            {key: record.get(key) for key in names} | row
            for path, record in zip(paths, records, strict=True)
            for row in RunFolder(path).rows()
        ]
    write_records(file, records)
    return len(records)


def write_records(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """The records as Parquet or CSV, each column of one type."""
    import pandas as pd

    frame = pd.DataFrame(records).map(_plain)
    if file.suffix == ".csv":
        frame.to_csv(file, index=False)
        return
    for column in frame:  # Parquet wants one type
        kinds = set(frame[column].dropna().map(type))
        if len(kinds) > 1 and str in kinds:
            frame[column] = frame[column].astype("string")
    frame.to_parquet(file, index=False)


def _plain(value: Any) -> Any:
    if isinstance(value, list | dict):
        return str(value)
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else value
