"""What an embedded store holds, read from its tables, without what the clock put there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.faults.injector import ROOT
from tests.faults.states import CLOCK, content

#: Tags that are drawn anew for each store, or say where it lies.
DRAWN = {"attnres.id", "attnres.whole", "sweep_id", "mlflow.parentRunId", "checkpoint", "bytes"}
#: Of their content the name counts.
PAGES = {"log.txt", "trials.csv", "figures.html", "sweep.json"}


def flip(path: Path) -> None:
    """The lowest bit of the first byte of the table of points, which opening does not read."""
    data = bytearray(path.read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as database:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'metrics'"
        (page,) = database.execute(query).fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    data[(page - 1) * size] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "gone": Path.unlink,
    "garbage": lambda path: path.write_bytes(b"\xff\x00{[" * 5000),
    "a bit": flip,
}


def store_state(runs: Path, database: Path | None = None) -> dict[str, Any]:
    """By trial (its hash; other runs by their name): state, parameters, tags, every point of every
    metric, data, models, and the files that were uploaded.
    """
    path = database or runs / "mlflow.db"
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = store.execute(
            "SELECT run_uuid, name, status, artifact_uri FROM runs WHERE lifecycle_stage = 'active'"
        ).fetchall()
        found: dict[str, Any] = {}
        for uid, name, status, artifacts in rows:
            tags = dict(_all(store, "SELECT key, value FROM tags", uid))
            key = tags.get("trial", name)
            assert key not in found, f"{key} is there twice"
            found[key] = {
                "status": status,
                "tags": _without(tags),
                "params": dict(_all(store, "SELECT key, value FROM params", uid)),
                # of a sweep the best so far is told at the end of each start
                "points": []
                if tags.get("kind") == "sweep"
                else _points(_all(store, "SELECT key, step, value, is_nan FROM metrics", uid)),
                "latest": _points(_all(store, "SELECT key, step, value FROM latest_metrics", uid)),
                "data": sorted(_data(store, uid)),
                "models": sorted(_models(store, uid), key=str),
                "files": dict(_files(Path(unquote(artifacts.removeprefix("file://"))))),
            }
    return found


def _all(store: sqlite3.Connection, query: str, uid: str) -> list[Any]:
    return store.execute(f"{query} WHERE run_uuid = ?", [uid]).fetchall()


def _without(tags: dict[str, str]) -> dict[str, str]:
    """What is drawn, and what is empty: a tag that was there once cannot be taken back."""
    return {
        key: value
        for key, value in tags.items()
        if value and key not in DRAWN and not (key == "mlflow.note.content" and "bytes" in value)
    }


def _points(rows: list[Any]) -> list[Any]:
    """Sorted, so that a point that is there twice shows; of clocks the steps alone."""
    return sorted(
        (key, step, *([] if CLOCK.fullmatch(key) else value))
        for key, step, *value in rows
        if not key.startswith("system/")
    )


def _data(store: sqlite3.Connection, uid: str) -> list[Any]:
    return store.execute(
        "SELECT d.name, d.digest, d.dataset_source, d.dataset_profile FROM inputs i "
        "JOIN datasets d ON d.dataset_uuid = i.source_id WHERE i.destination_id = ?",
        [uid],
    ).fetchall()


def _models(store: sqlite3.Connection, uid: str) -> Iterator[Any]:
    query = "SELECT model_id, name, status FROM logged_models WHERE source_run_id = ?"
    for model, name, status in store.execute(query, [uid]).fetchall():
        of = [model]
        tags = store.execute(
            "SELECT tag_key, tag_value FROM logged_model_tags WHERE model_id = ?", of
        )
        params = store.execute(
            "SELECT param_key, param_value FROM logged_model_params WHERE model_id = ?", of
        )
        outputs = store.execute("SELECT step FROM inputs WHERE destination_id = ?", of).fetchall()
        yield name, status, _without(dict(tags.fetchall())), dict(params.fetchall()), outputs


def _files(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            image = name.startswith("images/")  # MLflow puts a time and a random part into its name
            name = re.split("[+%]timestamp", name)[0] + path.suffix if image else name
            yield name, "" if image or path.name in PAGES else content(path)


def make_empty(folder: Path) -> Path:
    """A store with its schema and nothing else, which takes seconds to make."""
    names = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    subprocess.run(
        [sys.executable, "-c", "from attnres_lab.tracking import connect; connect()"],
        cwd=ROOT,
        env=names | {"ATTNRES_RUNS": str(folder), "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=240,
    )
    return folder / "mlflow.db"


def provide(empty: Path, runs: Path) -> None:
    """A copy of the ``empty`` store in the folder of the runs."""
    runs.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty, runs / "mlflow.db")
    with contextlib.closing(sqlite3.connect(runs / "mlflow.db")) as store, store:
        store.execute(
            "UPDATE experiments SET artifact_location = ?", [(runs / "artifacts").as_uri()]
        )
