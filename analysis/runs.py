"""Runs as tidy tables: from the run folders, from files, or from an MLflow store."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import store
from analysis.store import LABELS
from attnres_lab.runs import RunFolder, SweepFolder, UserError
from attnres_lab.runs.table import FIRST, as_text, find, planned, table

POSITION = ("tokens", "flops", "seconds")
# of a record, but neither a label nor a number that came out
_ABOUT = (
    *("run", "run_name", "state", "failure", "message", "config_hash", "revision", "dirty"),
    *("device", "planned_flops", "planned_tokens"),
)


def load_runs(
    name_or_folder: str | Path, tracking_uri: str | None = None, *, tuning: bool = False
) -> pd.DataFrame:
    """One row per run of ``name_or_folder``: a sweep (its name, or its folder), any folder of runs,
    or a CSV, Parquet or JSON file; with ``tracking_uri``, of a sweep or an experiment in that
    MLflow store.

    Columns: ``run_id`` (the run's folder, or MLflow's id), ``name``, ``sweep``, ``status``,
    ``variant``, ``size``, ``seed`` (int), ``data_fingerprint``, ``trial``; every final number
    (``val/loss`` in nats per token, ``flops``, ``tokens``, ``seconds``, ``device_seconds``,
    ``params``, ...), from MLflow the last value of every other metric too; every dotted config key,
    as numbers where all of its values are numbers. A sweep's runs are those of its plan; stale
    ones, of an earlier plan, are left out. Of a sweep under ``tune`` the runs that
    only chose its values are left out, or, with ``tuning``, they alone are read.

    Raises ValueError for a sweep or experiment that is not there, with the nearest name, and for a
    store that does not answer; FileNotFoundError for a missing file.
    """
    return of_kind(read_runs(name_or_folder, tracking_uri), tuning=tuning)


def read_runs(name_or_folder: str | Path, tracking_uri: str | None = None) -> pd.DataFrame:
    """``load_runs`` of either kind together, with a column ``tuning`` where there are both. Raises
    as ``load_runs``.
    """
    if (read := _read_table(name_or_folder)) is not None:
        return _floats(read)
    if tracking_uri:
        found = store.search(tracking_uri, str(name_or_folder))
        rows, params = zip(*map(store.tracked, found), strict=True)
    else:
        rows, params = zip(*_folders(name_or_folder), strict=True)
    runs = _floats(
        pd.DataFrame([{**param, **row} for row, param in zip(rows, params, strict=True)])
    )
    configured = {key for param in params for key in param} - {"name", "run_id", *LABELS}
    for column in (configured | {"seed"}) & set(runs):
        runs[column] = _numbers(runs[column])
    first = [column for column in FIRST if column in runs]
    return runs[[*first, *sorted(str(column) for column in set(runs) - set(first))]]


def of_kind(runs: pd.DataFrame, *, tuning: bool) -> pd.DataFrame:
    """The runs that chose a sweep's values, or those that measure."""
    if "tuning" not in runs:
        return runs.iloc[:0] if tuning else runs
    kind = runs["tuning"].astype(str).str.lower() == "true"
    kept: pd.DataFrame = runs[kind == tuning].drop(columns="tuning").reset_index(drop=True)
    return kept


def load_curves(
    name_or_folder: str | Path,
    tracking_uri: str | None = None,
    *,
    keys: Sequence[str] = ("train/loss", "val/loss"),
    runs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Histories of the metrics ``keys`` in long form: ``run_id``, ``name``, ``variant``, ``size``,
    ``seed``, ``key``, ``step``, ``tokens``, ``flops``, ``seconds``, ``value``.

    ``name_or_folder`` and ``tracking_uri`` are those of ``load_runs``; ``runs``: rows of it to
    restrict the reading to, so choose before loading thousands.
    A CSV, Parquet or JSON file in that form is read as it is. Raises as ``load_runs``.
    """
    if (read := _read_table(name_or_folder)) is not None:
        return read
    client = store.open_store(tracking_uri) if tracking_uri else None
    runs = load_runs(name_or_folder, tracking_uri) if runs is None else runs
    labels = [label for label in ("run_id", "name", "variant", "size", "seed") if label in runs]
    parts = [pd.DataFrame(columns=[*labels, "key", "step", *POSITION, "value"])]
    for run in runs[labels].to_dict("records"):
        labelled = {str(label): value for label, value in run.items()}
        wanted = (*keys, *POSITION)
        if client:
            history = {key: store.history(client, run["run_id"], key) for key in wanted}
        else:
            history = _rows_by_key(Path(run["run_id"]), wanted)
        for key in keys:
            steps = history[key].index
            place = {name: history[name].reindex(steps) for name in POSITION}
            parts.append(
                pd.DataFrame(
                    {**labelled, "key": key, "step": steps, **place, "value": history[key]}
                )
            )
    return pd.concat(parts[len(parts) > 1 :], ignore_index=True)


def depth_artifacts(run_id: str, folder: Path, tracking_uri: str | None = None) -> Path | None:
    """Where the depth records of a run lie, downloaded into ``folder`` where they come from a
    store; None where the run has none.
    """
    if not tracking_uri:
        own = RunFolder(run_id).depth
        return own if own.is_dir() else None
    client, name = store.open_store(tracking_uri), RunFolder("").depth.name
    found = client.list_artifacts(run_id, name)
    return Path(client.download_artifacts(run_id, name, str(folder))) if found else None


def _folders(name: str | Path) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Of each run: labels and numbers, and config values as text."""
    home, named = Path(name), SweepFolder.named(str(name)).path
    if isinstance(name, str) and named.is_dir():
        home = named
    if not home.is_dir():
        known = [path.name for path in named.parent.glob("*/")]
        close = difflib.get_close_matches(str(name), known, n=1)
        raise ValueError(
            f"{name}: no such sweep in {named.parent}, and no folder"
            + (f", did you mean '{close[0]}'?" if close else "")
        )
    sweep = SweepFolder(home)
    if records := planned(sweep):
        paths = [sweep.trials / record["trial"] for record in records]
    elif sweep.trials.is_dir():
        raise ValueError(f"{name}: no {sweep.plan_file}; attnres sweep run writes it again")
    else:
        try:
            paths = find(home)
        except UserError:
            raise ValueError(f"{name}: no run has started in {home} yet") from None
        records = table(paths)
    found = [
        _split(record, path.absolute())
        for record, path in zip(records, paths, strict=True)
        if "stale" not in record
    ]
    if not found:
        raise ValueError(f"{name}: the runs in {home} are no part of their sweep's plan any more")
    return found


def _split(record: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    params = {
        key.removeprefix("config/"): as_text(value)
        for key, value in record.items()
        if key.startswith("config/")
    }
    name = record["run_name"] or path.name
    row = {"run_id": str(path), "name": name, "status": record["state"]}
    for key, value in record.items():
        if key not in _ABOUT and not key.startswith("config/") and key != "step":
            word = value in ("nan", "inf", "-inf") if isinstance(value, str) else False
            row[key] = float(value) if word else value
    return row, params


def _rows_by_key(path: Path, keys: Sequence[str]) -> dict[str, pd.Series[Any]]:
    """Value by step of each key; of values at one step the last written counts, and those that are
    not finite are left out, as a store leaves them.
    """
    found: dict[str, dict[int, float]] = {key: {} for key in keys}
    for row in RunFolder(path).rows():
        for key in keys:
            value = row.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                found[key][row["step"]] = value
    return {key: pd.Series(values, dtype=float) for key, values in found.items()}


def _read_table(path: str | Path) -> pd.DataFrame | None:
    if Path(path).suffix == ".csv":
        return pd.read_csv(path)
    if Path(path).suffix == ".json":
        rows = json.loads(Path(path).read_text())
        return pd.DataFrame(rows).replace({"nan": math.nan, "inf": math.inf, "-inf": -math.inf})
    return pd.read_parquet(path) if Path(path).suffix == ".parquet" else None


def _floats(table: pd.DataFrame) -> pd.DataFrame:
    """With whole numbers that are too long for 64 bits, such as FLOP of larger runs, as floats and
    not as objects.
    """
    objects = [key for key in table if table[key].dtype == object]
    whole = [key for key in objects if pd.api.types.infer_dtype(table[key]) == "integer"]
    return table.astype(dict.fromkeys(whole, float))


def _numbers(column: pd.Series[Any]) -> pd.Series[Any]:
    """Numbers or booleans where every value that is there is one; null is a missing value."""
    given = column.where(~column.isin(["null", "None"]), None)
    if given.isna().all() or set(given.dropna()) <= {"true", "false"}:
        return given.map({"true": True, "false": False})
    try:
        return pd.to_numeric(given)
    except ValueError:
        return given
