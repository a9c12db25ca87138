"""The same sweep on a real Ray cluster of two nodes, with token authentication."""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.sweep.conftest import Lab
from tests.sweep.services import RAY, wait_for
from tests.sweep.test_crash import CHAIN, check_exact, trial_pids

pytestmark = pytest.mark.infra


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("no ray: pip install attnres-lab[ray]")
    settings = {**RAY, "SYNTHETIC_SECONDS": "1"}
    os.environ |= settings
    # Ray reads its settings when it is imported; tasks have the nodes' environment
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False},
    )
    cluster.second = cluster.add_node(num_cpus=1, num_gpus=0)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()
    for name in settings:
        os.environ.pop(name)


def test_trials_run_as_tasks_and_a_killed_node_costs_only_an_attempt(
    lab: Lab, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes; one is killed while both work: the sweep ends on the other, from the
    checkpoints.
    """
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    launcher = {"name": "ray", "address": cluster.address}
    path = lab.sweep(
        space={"seed": [0, 1]},
        launcher=launcher,
        resources={"devices": 0},
        retry={"backoff": 0.1, "infrastructure": 5},
        **CHAIN,
    )
    command = [sys.executable, "-m", "attnres_lab", "sweep", "run", str(path)]
    with open(lab.path / "log", "ab") as log:
        coordinator = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
    wait_for(lambda: len(trial_pids(lab)) == 2, 180)
    time.sleep(1)
    raylet = psutil.Process(cluster.second.all_processes["raylet"][0].process.pid)
    for process in [raylet, *raylet.children(recursive=True)]:  # as a machine dies
        process.kill()
    cluster.remove_node(cluster.second, allow_graceful=False)
    assert coordinator.wait(300) == 0, (lab.path / "log").read_text()
    check_exact(lab)
    assert len([e for e in lab.witness() if e[0] == "start"]) > 2


def test_tasks_end_with_their_coordinator_and_the_next_one_goes_on(
    lab: Lab, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    path = lab.sweep(
        space={"seed": [0]},
        launcher={"name": "ray", "address": cluster.address},
        resources={"devices": 0},
        **CHAIN,
    )
    command = [sys.executable, "-m", "attnres_lab", "sweep", "run", str(path)]
    coordinator = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(
        lambda: any(run.checkpoint.exists() for run in map(lab.folder.trial, lab.states())), 180
    )
    coordinator.kill()
    coordinator.wait()
    wait_for(lambda: not trial_pids(lab), 30)
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    check_exact(lab)
    assert int(lab.witness()[-2][2]) > 0


def test_four_trials_share_a_device(
    lab: Lab, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a node with one device and cores enough: never five at a time, though six are there."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    node = cluster.add_node(num_cpus=8, num_gpus=1)
    path = lab.sweep(
        space={"seed": list(range(6))},
        launcher={"name": "ray", "address": cluster.address},
        resources={"devices": 0.25},
        function="tests.sweep.synthetic:four",
    )
    command = [sys.executable, "-m", "attnres_lab", "sweep", "run", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    cluster.remove_node(node)
    assert found.returncode == 0, found.stdout + found.stderr
    assert set(lab.states().values()) == {"finished"}
    events = lab.witness()
    at_work = list(accumulate(1 if e[0] == "start" else -1 for e in events))
    assert (max(at_work), at_work[-1]) == (4, 0)
    assert {e[2] for e in events if e[0] == "start"} == {"0"}


def test_a_wrong_token_is_refused(lab: Lab, cluster: Any) -> None:
    environment = {**os.environ, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    path = lab.sweep(launcher={"name": "ray", "address": cluster.address}, resources={"devices": 0})
    command = [sys.executable, "-m", "attnres_lab", "sweep", "run", str(path)]
    found = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode != 0
    assert not lab.witness()
