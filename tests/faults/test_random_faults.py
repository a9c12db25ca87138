"""Random faults over real sweeps, mirror and store included: kills of the coordinator, a trial, a
rank, the mirror and the fork server at random moments; full disks, failing disks and half writes at
random calls. The next start ends with the folders, the plan, the study and the store of a sweep
that nothing happened to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from helpers import write_run

from attnres_lab.runs.files import read_json
from tests.faults.injector import Injector, Warm
from tests.faults.states import search_state, sweep_state
from tests.faults.stores import store_state
from tests.faults.storm import Storm
from tests.faults.test_run_faults import TINY
from tests.faults.test_sweep_faults import CHAIN

SWEEP = {"name": "s", "base": "tiny.yaml", "retry": {"backoff": 0.01, "infrastructure": 20}}
PRUNED = {
    "space": {"optim.lr": {"log": [1e-3, 1e-1]}},
    "sampler": {"name": "qmc"},
    "trials": 4,
    "pruner": {"name": "median", "options": {"n_startup_trials": 1, "n_warmup_steps": 1}},
    "launcher": {"workers": 1},
}
SWEEPS: dict[str, dict[str, Any]] = {
    "training": {"space": {"seed": [0, 1]}, "launcher": {"workers": 2}},
    "two ranks": {"space": {"seed": [0]}, "launcher": {"workers": 1}, "resources": {"devices": 2}},
    "a pruned search": PRUNED | CHAIN,
}
BASES: dict[str, dict[str, Any]] = {
    "two ranks": {"train.devices": 2, "train.device": "cpu"},
    "a pruned search": {"budget": "10 steps"},  # long enough for the pruner to see some
}
KILLS = ["coordinator", "trial", "mirror"]
#: Who is killed in each sweep, and how many faults there are, of calls too.
HUNDRED = {
    "training": (KILLS, 50),
    "two ranks": ([*KILLS, "rank", "rank"], 22),
    "a pruned search": (KILLS, 25),
}
SERVED = 4  # more, where trials are forked from the real fork server, whose start takes seconds


def told(runs: Path) -> dict[str, Any]:
    """Of a search whose pruner judges by what it saw in time: every point that was planned is told,
    each has a result or was given up, and the store says of every trial what its folder says.
    """
    state, store = search_state(runs), store_state(runs)
    plan = sweep_state(runs)["plan.json"]
    folders = {e["hash"]: sweep_state(runs)[f"trials/{e['hash']}/status.json"] for e in plan}
    for hash, status in folders.items():
        assert store[hash]["tags"]["status"] == status["state"]
        steps = [point[1] for point in store[hash]["points"] if point[0] == "val/loss"]
        assert sorted(set(steps)) == sorted(steps)
    assert {status["state"] for status in folders.values()} <= {"finished", "pruned"}
    assert len(store) == 1 + len(plan)
    return {"planned": state["planned"], "told": len(state["study"])}


def whole(runs: Path) -> dict[str, Any]:
    return {**sweep_state(runs), "store": store_state(runs)}


@pytest.fixture
def made(
    tmp_path: Path, mlflow_process: tuple[Injector, Warm], empty_store: Path
) -> Callable[..., Storm]:
    """Storms by the name of their sweep."""
    home = tmp_path.resolve()
    (home / "mlflow.db").write_bytes(empty_store.read_bytes())
    return lambda name: _storm(home, name, mlflow_process)


def _storm(folder: Path, name: str, process: tuple[Injector, Warm]) -> Storm:
    home = folder / name.replace(" ", "-")
    home.mkdir()
    write_run(home / "tiny.yaml", **TINY | BASES.get(name, {}))
    file = home / "sweep.yaml"
    file.write_text(yaml.safe_dump(SWEEP | SWEEPS[name]))
    state = told if name == "a pruned search" else whole
    return Storm(name, file, *process, folder / "mlflow.db", state)


def rage(storm: Storm, random: Random, roles: list[str], faults: int) -> Counter[str]:
    """So many faults, by kind: up to two in a start, until the sweep is done; then the check."""
    faults += storm.counts.total()
    while storm.counts.total() < faults:
        storm.fresh()
        while not storm.disturbed(random, roles):
            pass
        storm.check()
    return storm.counts


@pytest.mark.slow
@pytest.mark.parametrize("name", HUNDRED)
def test_a_handful_of_random_faults_leaves_no_trace(made: Callable[..., Storm], name: str) -> None:
    assert rage(made(name), Random(0), HUNDRED[name][0], 3).total() >= 3


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", HUNDRED)
def test_a_hundred_random_faults_leave_no_trace(made: Callable[..., Storm], name: str) -> None:
    """Over all sweeps, each kind among them; ``-s`` prints how many of which kind there were."""
    roles, faults = HUNDRED[name]
    assert sum(number for _, number in HUNDRED.values()) + SERVED >= 100
    storm = made(name)
    if "pruner" in SWEEPS[name]:
        states = [(read_json(f) or {})["state"] for f in storm.file.parent.rglob("status.json")]
        assert "pruned" in states
    counts = rage(storm, Random(name), roles, faults)
    if name == "training":
        storm.start, storm.counts = "forkserver", Counter()
        counts += rage(storm, Random(name), ["forkserver"], SERVED)
    print(f"{name}: {counts.total()} faults: {dict(counts)}")
    assert {f"kill of {role}" for role in roles} < set(counts)
