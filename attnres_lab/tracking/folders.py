"""Run folders as tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder, read_json
from attnres_lab.runs.paths import runs_folder
from attnres_lab.tracking.names import flatten
from attnres_lab.yamlfile import YamlFile


def find(folder: Path | None = None) -> list[Path]:
    """Run folders below ``folder`` (default: all runs), the last changed first. Raises UserError
    when there are none.
    """
    root = folder or runs_folder()
    found = []
    for path, folders, files in os.walk(Path(root).absolute()):
        if Path(path) == runs_folder() / "artifacts":  # MLflow's copies
            folders.clear()
            continue
        if "status.json" in files:
            folders.clear()
            found.append(((Path(path) / "status.json").stat().st_mtime, Path(path)))
    if not found:
        raise UserError(f"{root}: no runs here; train or sweep first, or name another folder")
    return [path for _, path in sorted(found, reverse=True)]


def locate(name: str) -> Path:
    """The run folder ``name``, from here or from the folder of the runs. Raises UserError."""
    for path in (Path(name), runs_folder() / name):
        if (path / "status.json").exists():
            return path
    raise UserError(
        f"{name}: no run folder (it has no status.json); 'attnres runs list' prints the names"
    )


def records(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Per run: its name, state, labels, final numbers and, as ``config/<dotted key>``, its
    config.
    """
    root = runs_folder()
    for path in paths:
        files = RunFolder(path)
        status = files.status()
        environment = read_json(files.environment) or {}
        labels = {
            key: environment.get(key)
            for key in (
                "variant",
                "size",
                "seed",
                "revision",
                "dirty",
                "device",
                "data_fingerprint",
            )
        }
        config = flatten(YamlFile(files.config).data) if files.config.exists() else {}
        name = path.relative_to(root) if path.is_relative_to(root) else path
        head = {
            "run": str(name),
            "state": status.state,
            "failure": status.failure,
            **labels,
            "step": status.step,
        }
        yield (
            head
            | (read_json(files.result) or {})
            | {f"config/{key}": value for key, value in config.items()}
        )


def write_table(file: Path, paths: Sequence[Path], *, rows: bool = False) -> int:
    """Write ``records``, or every metric row with the run's labels, as Parquet or CSV by the file's
    ending; the number of lines. Raises UserError.
    """
    import pandas as pd

    if file.suffix not in (".parquet", ".csv"):
        raise UserError(f"{file}: the name must end in .parquet or .csv")
    table: list[dict[str, Any]] = []
    for path, record in zip(paths, records(paths), strict=True):
        labels = {key: record.get(key) for key in ("run", "state", "variant", "size", "seed")}
        table += [labels | row for row in RunFolder(path).rows()] if rows else [record]
    frame = pd.DataFrame(table).map(
        lambda value: (
            float(value)
            if value in ("nan", "inf", "-inf")
            else str(value)
            if isinstance(value, list)
            else value
        )
    )
    if file.suffix == ".csv":
        frame.to_csv(file, index=False)
    else:
        mixed = [
            column
            for column in frame
            if frame[column].map(type).nunique() > 1
            and frame[column].map(lambda v: isinstance(v, str)).any()
        ]
        frame.astype(dict.fromkeys(mixed, "string")).to_parquet(file)
    return len(frame)
