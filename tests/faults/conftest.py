"""A warm process that has MLflow's modules too, and an empty store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.injector import ROOT, Injector, Warm, warm

MODULES = (
    *("tests.faults.targets", "tests.sweep.synthetic", "attnres_lab.tracking.sweep"),
    *("mlflow.store.tracking.sqlalchemy_store", "attnres_lab.tracking.figures", "plotly"),
)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its schema and nothing else: made once, since that takes seconds."""
    folder = tmp_path_factory.mktemp("store").resolve()
    names = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    subprocess.run(
        [sys.executable, "-c", "from attnres_lab.tracking import connect; connect()"],
        cwd=ROOT,
        env=names | {"ATTNRES_RUNS": str(folder), "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=240,
    )
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def mlflow_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Injector, Warm]]:
    """An injector and the process that it reaches."""
    with warm(tmp_path_factory.mktemp("warm-mlflow"), *MODULES) as both:
        yield both
