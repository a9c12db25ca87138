"""A study in a real PostgreSQL: shared, started at the same instant, restarted in the middle."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.conftest import Lab, in_process
from tests.sweep.services import Postgres, wait_for
from tests.sweep.test_crash import CHAIN, _exit_with_outcome

pytestmark = pytest.mark.infra
SEARCH: dict[str, Any] = {
    "sampler": {"name": "tpe"},
    "space": {"optim.lr": {"log": [1e-4, 1e-1]}, "seed": [0, 1]},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.remove()


def studies(server: Postgres, name: str) -> list[Any]:
    import optuna

    storage = server.url.replace("://", "+psycopg2://")
    names = [found for found in optuna.get_all_study_names(storage) if found.startswith(f"{name}-")]
    return [optuna.load_study(study_name=found, storage=storage) for found in names]


def states(server: Postgres, name: str) -> list[str]:
    (study,) = studies(server, name)
    return [t.state.name for t in study.trials]


def test_eight_coordinators_start_on_an_empty_database_at_once_and_share_its_trials(
    tmp_path_factory: Any, monkeypatch: Any, server: Postgres
) -> None:
    """As eight machines would: a folder each, one study; together they propose what was asked
    for.
    """
    from tests.sweep import conftest

    monkeypatch.setattr("attnres_lab.sweep.launchers.local.START_METHOD", "fork")
    monkeypatch.setattr("attnres_lab.sweep.engine.SweepMirror", conftest._no_mirror)
    labs = [Lab(tmp_path_factory.mktemp("machine")) for _ in range(8)]
    processes = [
        in_process(_exit_with_outcome, lab, lab.sweep(storage=server.url, trials=16, **SEARCH))
        for lab in labs
    ]
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 8
    found = states(server, "s")
    assert set(found) == {"COMPLETE"}
    assert 16 <= len(found) <= 16 + 8  # each may propose one that it did not yet know was proposed
    assert sum(len({e.point for e in lab.folder.plan()}) for lab in labs) == len(found)


def test_a_database_that_restarts_is_waited_for(
    lab: Lab, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.1")
    path = lab.sweep(storage=server.url, trials=4, **{**SEARCH, **CHAIN, "name": "restarted"})
    os.environ["ATTNRES_RUNS"] = str(lab.path / "runs")
    coordinator = in_process(_exit_with_outcome, lab, path)
    wait_for(lambda: lab.witness())
    server.stop()
    time.sleep(3)
    server.start()
    coordinator.join()
    assert coordinator.exitcode == 0
    assert states(server, "restarted") == ["COMPLETE"] * 4
    assert sum(e[0] == "finish" for e in lab.witness()) == 8


def test_a_changed_space_leaves_the_study_that_another_machine_writes_alone(
    lab: Lab, tmp_path: Path, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both machines end with all their trials in the database, each in the study of its own
    space.
    """
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.2")
    other = Lab(tmp_path / "other")
    plain = {**SEARCH, **CHAIN, "name": "changed", "storage": server.url, "trials": 2}
    coordinator = in_process(_exit_with_outcome, lab, lab.sweep(**plain))
    wait_for(lambda: len(lab.witness()) == 2)
    assert (
        other.run(
            other.sweep(**{**plain, "space": {"optim.lr": [1e-3, 3e-3, 1e-2], "seed": [0]}})
        ).exit_code
        == 0
    )
    coordinator.join()
    assert coordinator.exitcode == 0
    assert [t.state.name for study in studies(server, "changed") for t in study.trials] == [
        "COMPLETE"
    ] * 4
