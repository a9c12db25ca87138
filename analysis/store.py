"""Runs in an MLflow store; the only file of the package that talks to MLflow."""

from __future__ import annotations

import difflib
import gc
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from attnres_lab.runs import SweepFolder
from attnres_lab.runs.table import FIRST

LABELS = FIRST[2:]  # what MLflow's tags hold too
_LARGEST = 1.79e308  # what MLflow's SQL stores write for infinity


def open_store(uri: str) -> Any:
    """A client of the store. Raises ValueError for an embedded store that is not there."""
    file = Path(uri.removeprefix("sqlite:///"))
    # MLflow would create an empty store and find nothing in it
    if uri.startswith("sqlite:///") and not file.exists():
        raise ValueError(
            f"{file}: no runs are tracked there; run a sweep first, or name another store "
            "(tracking_uri)"
        )
    from mlflow import MlflowClient

    return MlflowClient(uri)


def search(tracking_uri: str, name: str) -> list[Any]:
    """The runs of the sweep ``name``, else of the experiment ``name``, without the parents of
    sweeps.
    """
    from mlflow.exceptions import MlflowException

    client = open_store(tracking_uri)
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
                if run.data.tags.get("kind") != "sweep" and "stale" not in run.data.tags
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
    newest; without the stale runs, which its plan no longer has.
    """
    ids = {run.data.tags.get("sweep_id") for run in runs}
    here = SweepFolder.named(name).facts().get("id")
    chosen = (
        here
        if here in ids
        else max(runs, key=lambda run: run.info.start_time).data.tags.get("sweep_id")
    )
    return [
        run
        for run in runs
        if run.data.tags.get("sweep_id") == chosen and "stale" not in run.data.tags
    ]


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


def tracked(run: Any) -> tuple[dict[str, Any], dict[str, str]]:
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


def history(client: Any, run_id: str, key: str) -> pd.Series[Any]:
    """Value by step; of values at one step (a resumed run) the last written counts."""
    points = sorted(client.get_metric_history(run_id, key), key=lambda m: (m.step, m.timestamp))
    return pd.Series({m.step: m.value for m in points}, dtype=float)
