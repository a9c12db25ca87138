"""A store of the test's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A store with its schema and nothing else: made once, since that takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    command = [sys.executable, "-c", "from attnres_lab.tracking import connect; connect()"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {"ATTNRES_RUNS": str(folder), "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=120,
    )
    return folder / "mlflow.db"


@pytest.fixture
def runs(tmp_path, monkeypatch, empty_store) -> Path:
    """The folder of the runs, with an embedded store."""
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute(
            "UPDATE experiments SET artifact_location = ?", [(folder / "artifacts").as_uri()]
        )
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATTNRES_RUNS", str(folder))
    return folder
