"""Tracked runs as tidy tables; the only file of the package that talks to MLflow."""

from __future__ import annotations

import difflib
import gc
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

LABELS = ("sweep", "status", "variant", "size", "seed", "data_fingerprint", "trial")
POSITION = ("tokens", "flops", "seconds")
_LARGEST = 1.79e308  # what MLflow's SQL stores write for infinity


def runs_folder() -> Path:
    """Where runs live: ``$ATTNRES_RUNS``, else ``runs`` in the nearest project folder, else in the
    working directory.
    """
    if folder := os.environ.get("ATTNRES_RUNS"):
        return Path(folder).absolute()
    here = Path.cwd()
    for parent in (here, *here.parents):
        if (parent / "runs" / "mlflow.db").exists() or (parent / "pyproject.toml").exists():
            return parent / "runs"
    return here / "runs"


def load_runs(sweep_or_experiment: str | Path, tracking_uri: str | None = None) -> pd.DataFrame:
    """One row per run of a sweep, or of an MLflow experiment, or of a CSV or Parquet file.

    Columns: ``run_id``, ``name``, ``sweep``, ``status``, ``variant``, ``size``, ``seed`` (int),
    ``data_fingerprint``, ``trial``; every metric at its last value (``val/loss`` in nats per token,
    ``flops``, ``tokens``, ``seconds``, ``device_seconds``, ``params``, ...); every dotted config
    key, as numbers where all of its values are numbers. ``tracking_uri`` is by default
    ``$MLFLOW_TRACKING_URI``, else the store in the runs folder.

    Raises ValueError for a sweep or experiment that is not tracked, with the nearest name, and for
    a store that does not answer; FileNotFoundError for a missing file.
    """
    if (table := _read_table(sweep_or_experiment)) is not None:
        return table
    found = _search(tracking_uri, str(sweep_or_experiment))
    table = pd.DataFrame([_row(run) for run in found])
    configured = {_decode(key) for run in found for key in run.data.params} - {"name", *LABELS}
    for column in (configured | {"seed"}) & set(table):
        table[column] = _numbers(table[column])
    first = ["run_id", "name", *(label for label in LABELS if label in table)]
    return table[[*first, *sorted(str(column) for column in set(table) - set(first))]]


def load_curves(
    sweep_or_experiment: str | Path,
    tracking_uri: str | None = None,
    *,
    keys: Sequence[str] = ("train/loss", "val/loss"),
    runs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Histories in long form: ``run_id``, ``name``, ``variant``, ``size``, ``seed``, ``key``,
    ``step``, ``tokens``, ``flops``, ``seconds``, ``value``.

    ``runs``: rows of ``load_runs`` to restrict the reading to; it costs some calls to the store per
    run, so choose before loading thousands. A CSV or Parquet file in that form is read as it is.
    Raises as ``load_runs``.
    """
    if (table := _read_table(sweep_or_experiment)) is not None:
        return table
    client = _client(tracking_uri)
    runs = load_runs(sweep_or_experiment, tracking_uri) if runs is None else runs
    labels = [label for label in ("run_id", "name", "variant", "size", "seed") if label in runs]
    parts = [pd.DataFrame(columns=[*labels, "key", "step", *POSITION, "value"])]
    for run in runs[labels].to_dict("records"):
        labelled = {str(label): value for label, value in run.items()}
        history = {key: _history(client, run["run_id"], key) for key in (*keys, *POSITION)}
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
    """Download the depth records of a run into ``folder``: the path that holds them, or None where
    the run has none.
    """
    client = _client(tracking_uri)
    return (
        Path(client.download_artifacts(run_id, "depth", str(folder)))
        if client.list_artifacts(run_id, "depth")
        else None
    )


def default_tracking_uri() -> str:
    """``$MLFLOW_TRACKING_URI``, else the SQLite store in the runs folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_folder() / 'mlflow.db'}"


def _read_table(path: str | Path) -> pd.DataFrame | None:
    if Path(path).suffix == ".csv":
        return pd.read_csv(path)
    return pd.read_parquet(path) if Path(path).suffix == ".parquet" else None


def _client(tracking_uri: str | None) -> Any:
    uri = tracking_uri or default_tracking_uri()
    file = Path(uri.removeprefix("sqlite:///"))
    # MLflow would create an empty store and find nothing in it
    if uri.startswith("sqlite:///") and not file.exists():
        raise ValueError(
            f"{file}: no runs are tracked there; run a sweep first, or name another store "
            "(tracking_uri, MLFLOW_TRACKING_URI)"
        )
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _search(tracking_uri: str | None, name: str) -> list[Any]:
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
            f"{tracking_uri or default_tracking_uri()}: the runs cannot be read; is the store "
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
    file = runs_folder() / "sweeps" / name / "sweep.json"
    here = json.loads(file.read_text()).get("id") if file.exists() else None
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


def _row(run: Any) -> dict[str, Any]:
    """Labels over config keys over metrics; ``factor/`` metrics only repeat config keys."""
    metrics = {
        _decode(key): value
        for key, value in run.data.metrics.items()
        if not key.startswith("factor/")
    }
    metrics = {
        key: math.copysign(math.inf, value) if abs(value) >= _LARGEST else value
        for key, value in metrics.items()
    }
    params = {_decode(key): value for key, value in run.data.params.items()}
    labels = {key: run.data.tags[key] for key in LABELS if key in run.data.tags}
    return {**metrics, **params, "run_id": run.info.run_id, "name": run.info.run_name, **labels}


def _decode(name: str) -> str:
    """Characters that MLflow refuses in names are tracked as ``_x<hex>_``."""
    return re.sub(r"_x([0-9a-f]+)_", lambda match: chr(int(match[1], 16)), name)


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
