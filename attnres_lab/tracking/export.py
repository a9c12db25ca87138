"""Tables of runs as files for other programs: one schema (``runs.table.tidy``), three formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnres_lab.errors import UserError
from attnres_lab.runs.files import finite
from attnres_lab.runs.folder import RunFolder
from attnres_lab.runs.table import table, tidy

FORMATS = (".csv", ".parquet", ".json")
#: Of a line per logged row: the labels of its run, then where it stands.
ROW_LABELS = ("run_id", "name", "sweep", "status", "variant", "size", "seed", "trial")
POSITION = ("step", "time", "tokens", "flops", "seconds")


def write_table(file: Path, paths: Sequence[Path], *, rows: bool = False) -> int:
    """Write a line per run folder, or per metrics row with the run's labels, as CSV, Parquet or
    JSON by the file's ending; the number of lines. Raises UserError.
    """
    if file.suffix not in FORMATS:
        raise UserError(f"{file}: the name must end in {', '.join(FORMATS)}")
    found = tidy(table(paths))
    if rows:
        found = _logged(found)
    try:
        write_records(file, found)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    return len(found)


def _logged(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line per logged row of the runs."""
    found = [
        {key: run[key] for key in ROW_LABELS if key in run} | row
        for run in runs
        for row in RunFolder(run["run_id"]).rows()
    ]
    columns = {key for row in found for key in row}
    first = [key for key in (*ROW_LABELS, *POSITION) if key in columns]
    order = [*first, *sorted(columns - set(first))]
    return [{key: row.get(key) for key in order} for row in found]


def write_records(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """The records, all with the same keys, by the file's ending; in CSV and Parquet each column has
    one type.
    """
    if file.suffix == ".json":
        lines = ",\n".join(json.dumps(finite(record), ensure_ascii=False) for record in records)
        file.write_text(f"[\n{lines}\n]\n")
        return
    import pandas as pd

    frame = pd.DataFrame(records).map(_plain)
    if file.suffix == ".csv":
        frame.to_csv(file, index=False)
        return
    for column in frame:  # Parquet wants one type
        kinds = set(frame[column].dropna().map(type))
        if len(kinds) > 1 and kinds - {int, float}:
            frame[column] = frame[column].astype("string")
    frame.to_parquet(file, index=False)


def _plain(value: Any) -> Any:
    if isinstance(value, list | dict):
        return str(value)
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else value
