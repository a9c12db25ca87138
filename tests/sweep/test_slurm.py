"""The same sweep on a real Slurm of two nodes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnres_lab.sweep.launchers import slurm
from attnres_lab.sweep.planview import print_plan
from attnres_lab.sweep.spec import load_spec
from attnres_lab.training.environment import cpu_name
from tests.sweep.conftest import Lab
from tests.sweep.services import SlurmCluster, wait_for
from tests.sweep.test_crash import CHAIN, check_exact

pytestmark = pytest.mark.infra
LAUNCHER = {
    "launcher": {"name": "slurm", "partition": "debug"},
    "resources": {"devices": 1},
    "retry": {"backoff": 0.1, "infrastructure": 5},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm") / "cluster")
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def _settings(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def start(path: Path) -> subprocess.Popen[bytes]:
    with open(path.parent / "log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "attnres_lab", "sweep", "run", str(path)],
            stdout=log,
            stderr=log,
            env=os.environ,
        )


def starts(lab: Lab) -> list[int]:
    """The step of each start."""
    return [int(e[2]) for e in lab.witness() if e[0] == "start"]


def test_a_sweep_runs_as_arrays_and_no_two_trials_share_a_device(lab: Lab) -> None:
    """Seven trials, arrays of three at most, four fake GPUs."""
    assert lab.run(lab.sweep(space={"seed": list(range(7))}, **CHAIN, **LAUNCHER)).exit_code == 0
    check_exact(lab)
    assert len(list((lab.folder.path / "slurm").glob("*.sh"))) >= 3
    assert all(
        e[4] not in ("", "None") and "," not in e[4] for e in lab.witness() if e[0] == "start"
    )


def test_trials_share_devices_where_the_cluster_does(
    lab: Lab, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More at a time than there are devices, each on one of them."""
    monkeypatch.setenv("SYNTHETIC_SECONDS", "1")
    half = {
        "launcher": {"name": "slurm", "share": "shard:2"},
        "resources": {"devices": 0.5},
    }
    coordinator = start(lab.sweep(space={"seed": list(range(6))}, **CHAIN, **LAUNCHER | half))
    wait_for(lambda: len(cluster.call("squeue", "-h", "--array", "-t", "R").splitlines()) > 4, 120)
    assert set(cluster.call("squeue", "-h", "-t", "R", "-o", "%b").split()) == {"gres:shard:1"}
    assert coordinator.wait(300) == 0
    check_exact(lab)
    assert {e[4] for e in lab.witness() if e[0] == "start"} <= {"0", "1", "2", "3"}


def test_jobs_outlive_their_coordinator_and_the_next_one_adopts_them(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTHETIC_SECONDS", "1.0")
    path = lab.sweep(space={"seed": [0, 1]}, **CHAIN, **LAUNCHER)
    coordinator = start(path)
    wait_for(lambda: len(lab.witness()) == 2, 120)
    coordinator.kill()
    coordinator.wait()
    wait_for(lambda: lab.folder.holder() is None)
    assert lab.run(path).exit_code == 0
    check_exact(lab)
    assert starts(lab) == [0, 0]


def test_kills_of_daemons_nodes_jobs_and_coordinators_at_random_moments(
    lab: Lab, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of a slurmd alone, of a node with all that it runs, of the coordinator, and a
    cancelled job; without accounting.
    """
    monkeypatch.setenv("SYNTHETIC_SECONDS", "1.5")
    path = lab.sweep(space={"seed": [0, 1, 2, 3]}, **CHAIN, **LAUNCHER)
    coordinator = start(path)
    wait_for(lambda: len(lab.witness()) >= 3, 120)
    moments = random.Random(5)
    for victim in moments.sample(["slurmd", "node", "job", "coordinator"], 4):
        time.sleep(moments.uniform(0, 2))
        if victim == "job" and (
            jobs := cluster.call("squeue", "-h", "--array", "--me", "-t", "R", "-o", "%i").split()
        ):
            cluster.call("scancel", jobs[0])
        elif victim == "coordinator":
            coordinator.kill()
            coordinator.wait()
            coordinator = start(path)
        else:
            (cluster.kill_node if victim == "node" else cluster.kill_daemon)("n2")
            time.sleep(1)
            cluster.start_node("n2")
    assert coordinator.wait(300) == 0, (path.parent / "log").read_text()
    check_exact(lab)
    assert max(starts(lab)) > 0


@pytest.mark.parametrize(
    ("partition", "message"), [("polite", "a checkpoint on notice"), ("debug", "no notice at all")]
)
def test_preempted_trials_go_on_from_their_checkpoints(
    lab: Lab, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch, partition: str, message: str
) -> None:
    """An urgent job takes the nodes. Whatever the retry policy, the coordinator submits again, and
    each trial is finished once.
    """
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.7")
    policy = {
        **LAUNCHER,
        "launcher": {"name": "slurm", "partition": partition},
        "retry": {"infrastructure": 0},
    }
    path = lab.sweep(space={"seed": [0, 1]}, **CHAIN, **policy)
    coordinator = start(path)
    wait_for(lambda: len(lab.witness()) == 2, 120)
    time.sleep(1.5)
    cluster.call(
        "sbatch",
        "--parsable",
        "-p",
        "urgent",
        "-N2",
        "--exclusive",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 2",
    )
    assert coordinator.wait(120) == 0, (path.parent / "log").read_text()
    check_exact(lab)
    assert len(starts(lab)) == 4
    assert all(step > 0 for step in starts(lab)[2:])
    log = (path.parent / "log").read_text()
    assert log.count("stopped") == 2, message


def test_a_trial_out_of_time_writes_a_checkpoint_and_goes_on_in_a_new_job(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm counts in minutes and looks every half, and warns up to half a minute early: of a limit
    of one, a notice of 15 seconds comes 15 to 45 seconds into it; the second job is a quick one.
    """
    monkeypatch.setattr(slurm, "NOTICE", 15)
    monkeypatch.setenv("SYNTHETIC_SECONDS", "5")

    def hurry() -> None:
        wait_for(lambda: lab.witness(), 120)
        os.environ["SYNTHETIC_SECONDS"] = "0.02"

    threading.Thread(target=hurry, daemon=True).start()
    policy = {
        **LAUNCHER,
        "resources": {"devices": 1, "time_limit": 5 / 3600},
        "retry": {"infrastructure": 0},
    }
    assert lab.run(lab.sweep(space={"seed": [0]}, **CHAIN, **policy)).exit_code == 0
    check_exact(lab)
    assert len(starts(lab)) >= 2
    assert starts(lab) == sorted(set(starts(lab)))


def test_stop_ends_jobs_gracefully(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.5")
    path = lab.sweep(space={"seed": [0, 1, 2, 3, 4, 5]}, **CHAIN, **LAUNCHER)
    coordinator = start(path)
    wait_for(lambda: lab.witness(), 120)
    lab.folder.stop.touch()
    assert coordinator.wait(120) == 130
    assert "running" not in lab.states().values()
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.01")
    assert lab.run(path).exit_code == 0
    check_exact(lab)


def test_a_plan_measures_on_the_cluster(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The probe is a job; what it ran on is what the plan names and prices by."""
    monkeypatch.setenv("ATTNRES_CACHE", str(lab.path / "cache"))
    path = lab.sweep(
        space={"optim.lr": [1e-3, 3e-3]}, function="attnres_lab.training.run:run", **LAUNCHER
    )
    print_plan(load_spec(path), lab.folder)
    print_plan(load_spec(path), lab.folder, measure=True)
    before, after = capsys.readouterr().out.split("checkpoints:")[:2]
    assert "not measured on the machines of this cluster; use --measure" in before
    assert f"speed measured on {cpu_name()}" in after
    assert not list(lab.folder.trials.iterdir())


def test_sacct_tells_what_squeue_has_forgotten(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With real accounting and a queue that forgets within seconds, a job that Slurm ended is known
    for what it was.
    """
    cluster = SlurmCluster(tmp_path_factory.mktemp("accounting") / "cluster", accounting=True)
    try:
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
        monkeypatch.setattr(slurm, "POLL", 8.0)
        number = cluster.call(
            "sbatch", "--parsable", "-a", "0", "-o", "/dev/null", "--wrap", "sleep 60"
        ).strip()
        wait_for(lambda: "R" in cluster.call("squeue", "-h", "-o", "%t"))
        cluster.call(
            "sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"
        )
        wait_for(lambda: not cluster.call("squeue", "-h", "-t", "all", "-o", "%i"))
        assert slurm._account(f"{number}_0") == "PREEMPTED"
        assert lab.run(lab.sweep(space={"seed": [0, 1, 2]}, **CHAIN, **LAUNCHER)).exit_code == 0
        check_exact(lab)
    finally:
        cluster.stop()


def test_without_accounting_sacct_says_nothing(cluster: SlurmCluster) -> None:
    assert slurm._account("1_0") == ""
