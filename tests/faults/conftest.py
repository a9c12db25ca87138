"""A warm process that has MLflow's modules too, and an empty store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.injector import Injector, Warm, warm
from tests.faults.stores import make_empty

MODULES = (
    *("tests.faults.targets", "tests.sweep.synthetic", "attnres_lab.tracking.sweep"),
    *("mlflow.store.tracking.sqlalchemy_store", "attnres_lab.tracking.figures", "plotly"),
)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its schema and nothing else: made once, since that takes seconds."""
    return make_empty(tmp_path_factory.mktemp("store").resolve())


@pytest.fixture(scope="session")
def mlflow_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Injector, Warm]]:
    """An injector and the process that it reaches."""
    with warm(tmp_path_factory.mktemp("warm-mlflow"), *MODULES) as both:
        yield both
