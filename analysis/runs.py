"""Runs as tidy tables: from the run folders, from files, or from an MLflow store; the only file of
the package that talks to MLflow.
"""

from __future__ import annotations

import difflib
import gc
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from attnres_lab.runs import RunFolder, SweepFolder, UserError, runs_folder
from attnres_lab.runs.table import as_text, find, planned, table

__all__ = ["decode", "depth_artifacts", "from_params", "load_curves", "load_runs", "runs_folder"]

LABELS = ("sweep", "status", "variant", "size", "seed", "data_fingerprint", "trial", "tuning")
POSITION = ("tokens", "flops", "seconds")
_LARGEST = 1.79e308  # what MLflow's SQL stores write for infinity
# of a record, but neither a label nor a number that came out
_ABOUT = ("run", "run_name", "state", "failure", "config_hash", "revision", "dirty", "device")


def load_runs(
    name_or_folder: str | Path, tracking_uri: str | None = None, *, tuning: bool = False
) -> pd.DataFrame:
    """One row per run of a sweep (by its name, or its folder), of any folder of runs, or of a CSV
    or Parquet file; with ``tracking_uri``, of a sweep or an experiment in that MLflow store.

    Columns: ``run_id`` (the run's folder, or MLflow's id), ``name``, ``sweep``, ``status``,
    ``variant``, ``size``, ``seed`` (int), ``data_fingerprint``, ``trial``; every final number
    (``val/loss`` in nats per token, ``flops``, ``tokens``, ``seconds``, ``device_seconds``,
    ``params``, ...), from MLflow the last value of every other metric too; every dotted config key,
    as numbers where all of its values are numbers. A sweep's runs are those of its plan; run
    folders beside them are of an earlier plan and left out. Of a sweep under ``tune`` the runs that
    only chose its values are left out, or, with ``tuning``, they alone are read.

    Raises ValueError for a sweep or experiment that is not there, with the nearest name, and for a
    store that does not answer; FileNotFoundError for a missing file.
    """
    if (read := _read_table(name_or_folder)) is not None:
        return _of_kind(read, tuning=tuning)
    if tracking_uri:
        found = _search(tracking_uri, str(name_or_folder))
        rows, params = zip(*map(_tracked, found), strict=True)
    else:
        rows, params = zip(*_folders(name_or_folder), strict=True)
    runs = pd.DataFrame([{**param, **row} for row, param in zip(rows, params, strict=True)])
    configured = {key for param in params for key in param} - {"name", "run_id", *LABELS}
    for column in (configured | {"seed"}) & set(runs):
        runs[column] = _numbers(runs[column])
    first = ["run_id", "name", *(label for label in LABELS if label in runs)]
    runs = runs[[*first, *sorted(str(column) for column in set(runs) - set(first))]]
    return _of_kind(runs, tuning=tuning)


def _of_kind(runs: pd.DataFrame, *, tuning: bool) -> pd.DataFrame:
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
    """Histories in long form: ``run_id``, ``name``, ``variant``, ``size``, ``seed``, ``key``,
    ``step``, ``tokens``, ``flops``, ``seconds``, ``value``.

    ``runs``: rows of ``load_runs`` to restrict the reading to, so choose before loading thousands.
    A CSV or Parquet file in that form is read as it is. Raises as ``load_runs``.
    """
    if (read := _read_table(name_or_folder)) is not None:
        return read
    client = _client(tracking_uri) if tracking_uri else None
    runs = load_runs(name_or_folder, tracking_uri) if runs is None else runs
    labels = [label for label in ("run_id", "name", "variant", "size", "seed") if label in runs]
    parts = [pd.DataFrame(columns=[*labels, "key", "step", *POSITION, "value"])]
    for run in runs[labels].to_dict("records"):
        labelled = {str(label): value for label, value in run.items()}
        wanted = (*keys, *POSITION)
        if client:
            history = {key: _history(client, run["run_id"], key) for key in wanted}
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
        own = RunFolder(run_id).artifacts / "depth"
        return own if own.is_dir() else None
    client = _client(tracking_uri)
    return (
        Path(client.download_artifacts(run_id, "depth", str(folder)))
        if client.list_artifacts(run_id, "depth")
        else None
    )


def _folders(name: str | Path) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Of each run: labels and numbers, and config values as text."""
    home, sweeps = Path(name), runs_folder() / "sweeps"
    if isinstance(name, str) and (sweeps / name).is_dir():
        home = sweeps / name
    if not home.is_dir():
        known = [path.name for path in sweeps.glob("*/")]
        close = difflib.get_close_matches(str(name), known, n=1)
        raise ValueError(
            f"{name}: no such sweep in {sweeps}, and no folder"
            + (f", did you mean '{close[0]}'?" if close else "")
        )
    sweep = SweepFolder(home)
    if records := planned(sweep):
        paths = [sweep.trial(record["trial"]).path for record in records]
    elif sweep.trials.is_dir():
        raise ValueError(f"{name}: {home} has no plan.json; attnres sweep run writes it again")
    else:
        try:
            paths = find(home)
        except UserError:
            raise ValueError(f"{name}: no run has started in {home} yet") from None
        records = table(paths)
    return [_split(record, path.absolute()) for record, path in zip(records, paths, strict=True)]


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
    return pd.read_parquet(path) if Path(path).suffix == ".parquet" else None


def _client(uri: str) -> Any:
    file = Path(uri.removeprefix("sqlite:///"))
    # MLflow would create an empty store and find nothing in it
    if uri.startswith("sqlite:///") and not file.exists():
        raise ValueError(
            f"{file}: no runs are tracked there; run a sweep first, or name another store "
            "(tracking_uri)"
        )
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _search(tracking_uri: str, name: str) -> list[Any]:
    """The runs of the sweep ``name``, else of the experiment ``name``, without the parents of
    sweeps.
    """
    from mlflow.exceptions import MlflowException

    client = _client(tracking_uri)
    try:
        experiments = {e.name: e.experiment_id for e in client.search_experiments()}
        ids = list(experiments.values())
        if "'" not in name and (
            found := _pages(client, ids, f"tags.sweep = '{name}' and tags.kind = 'run'")
        ):
            return _one_sweep(found, name)
        if name in experiments:
            if found := [
                run
                for run in _pages(client, [experiments[name]], "")
                if run.data.tags.get("kind") != "sweep"
            ]:
                return found
            raise ValueError(f"{name}: the experiment holds no runs yet")
        sweeps = {
            run.data.tags.get("sweep", "") for run in _pages(client, ids, "tags.kind = 'sweep'")
        }
    except MlflowException as error:
        text = (
            f"{tracking_uri}: the runs cannot be read; is the store "
            f"there? ({str(error).splitlines()[0]})"
        )
        # an address may hold a password
        raise ValueError(re.sub(r"//[^/\s]*@", "//", text)) from None
    if name in sweeps:
        raise ValueError(f"{name}: no run of this sweep is tracked yet")
    close = difflib.get_close_matches(name, sweeps | set(experiments), n=1)
    raise ValueError(
        f"{name}: no such sweep or experiment is tracked"
        + (f", did you mean '{close[0]}'?" if close else "")
    )


def _one_sweep(runs: list[Any], name: str) -> list[Any]:
    """Of several sweeps of one name in a shared store: the one whose folder is here, else the
    newest.
    """
    ids = {run.data.tags.get("sweep_id") for run in runs}
    here = SweepFolder.named(name).facts().get("id")
    chosen = (
        here
        if here in ids
        else max(runs, key=lambda run: run.info.start_time).data.tags.get("sweep_id")
    )
    return [run for run in runs if run.data.tags.get("sweep_id") == chosen]


def _pages(client: Any, experiments: list[str], query: str) -> list[Any]:
    """All runs that match; without garbage collection, for scanning the hundred objects of every
    run for cycles takes two thirds of the time.
    """
    found: list[Any] = []
    enabled = gc.isenabled()
    token: str | None = ""
    gc.disable()
    try:
        while token is not None:
            page = client.search_runs(
                experiments, query, max_results=1000, page_token=token or None
            )
            found += page
            token = page.token or None
    finally:
        if enabled:
            gc.enable()
    return found


def _tracked(run: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Of a run in a store: labels and numbers, and config values as text; ``factor/`` metrics only
    repeat config keys.
    """
    metrics = {
        decode(key): math.copysign(math.inf, value) if abs(value) >= _LARGEST else value
        for key, value in run.data.metrics.items()
        if not key.startswith("factor/")
    }
    labels = {key: run.data.tags[key] for key in LABELS if key in run.data.tags}
    row = {**metrics, "run_id": run.info.run_id, "name": run.info.run_name, **labels}
    return row, from_params(run.data.params)


def decode(name: str) -> str:
    """Characters that MLflow refuses in names are tracked as ``_x<hex>_``."""
    return re.sub(r"_x([0-9a-f]+)_", lambda match: chr(int(match[1], 16)), name)


def from_params(params: Mapping[str, str]) -> dict[str, str]:
    """Dotted keys and whole texts of MLflow parameters: the rest of a long text is tracked under
    ``key/2``, ``key/3``, ...
    """
    values = {}
    for name, text in params.items():
        head, _, tail = name.rpartition("/")
        if tail.isdigit() and head in params:
            continue
        parts, index = [text], 2
        while (more := params.get(f"{name}/{index}")) is not None:
            parts, index = [*parts, more], index + 1
        values[decode(name)] = "".join(parts)
    return values


def _numbers(column: pd.Series[Any]) -> pd.Series[Any]:
    """Numbers or booleans where every value that is there is one; null is a missing value."""
    given = column.where(~column.isin(["null", "None"]), None)
    if given.isna().all() or set(given.dropna()) <= {"true", "false"}:
        return given.map({"true": True, "false": False})
    try:
        return pd.to_numeric(given)
    except ValueError:
        return given


def _history(client: Any, run_id: str, key: str) -> pd.Series[Any]:
    """Value by step; of values at one step (a resumed run) the last written counts."""
    points = sorted(client.get_metric_history(run_id, key), key=lambda m: (m.step, m.timestamp))
    return pd.Series({m.step: m.value for m in points}, dtype=float)
