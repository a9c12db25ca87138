"""What the engine costs, at the size of a large sweep."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.config import RunConfig, flatten
from attnres_lab.sweep.launchers.local import Lease, LocalConfig, make_leases
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.schema import Resources
from attnres_lab.sweep.spec import load_spec
from tests.sweep.conftest import Lab

TEN = {"range": [0, 9]}


def child_cpu(command: list[str]) -> float:
    """CPU seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "attnres_lab", *command],
        check=True,
        capture_output=True,
        env=os.environ,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_the_cost_of_running_a_trial_does_not_grow_with_their_number(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand against a hundred, the coordinator's CPU and that of ``status``: ratios, which
    other programs hardly change. What grows with the square gives 10, and 100. Memory is flat. The
    real fork server: its children's CPU is not ours.
    """
    monkeypatch.setattr("attnres_lab.sweep.launchers.local.START_METHOD", "forkserver")
    memory: list[float] = []
    monkeypatch.setattr(
        "attnres_lab.sweep.view.Screen.ended", lambda *_: memory.append(_resident())
    )

    def run(trials: int) -> tuple[float, float]:
        """CPU seconds a trial, and of a look at them."""
        one = Lab(lab.path / str(trials))
        monkeypatch.setenv("ATTNRES_RUNS", str(one.path / "runs"))
        path = one.sweep(space={"optim.lr": {"log": [1e-4, 1e-1, trials // 10]}, "seed": TEN})
        planned = time.process_time()
        Plan(load_spec(path)).known()
        before = time.process_time()
        assert one.run(path).done == trials
        spent = time.process_time() - before - (before - planned)
        return spent / trials, child_cpu(["sweep", "status", str(path)])

    run(20)  # imports
    few, look = run(100)
    memory.clear()
    many, long_look = run(1000)
    print(f"{many / few:.2f} of a hundred's, status {long_look / look:.2f}")
    assert many < 5 * few
    assert long_look < 10 * look
    assert memory[-1] - memory[100] < 20e6


@pytest.mark.slow
def test_the_cost_of_planning_a_trial_does_not_grow_with_their_number(lab: Lab) -> None:
    """10,000 against 1,000, and both against a piece of work that is no part of the plan: ratios,
    which other programs on the machine hardly change. What grows with the square gives 10.
    """

    def plan(rates: int) -> float:
        """CPU seconds a trial, of so many hundred of them."""
        space = {
            "optim.lr": {"log": [1e-4, 1e-1, rates]},
            "model.residual": [{"name": "baseline"}, {"name": "full"}],
            "model.dim": [32, 64, 96, 128, 160],
            "seed": TEN,
        }
        path, before = lab.sweep(space=space), time.process_time()
        result = CliRunner().invoke(app, ["sweep", "plan", str(path)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return (time.process_time() - before) / (100 * rates)

    def yardstick() -> float:
        """CPU seconds of a config's way through JSON and back."""
        settings, before = flatten(RunConfig()), time.process_time()
        for _ in range(10_000):
            json.loads(json.dumps(settings))
        return (time.process_time() - before) / 10_000

    plan(2)  # imports
    few, rods, many = [], [], []
    for _ in range(3):
        few.append(plan(10))
        rods.append(yardstick())
        many.append(plan(100))
    print(f"{min(many) / min(few):.2f} of a thousand's, {min(many) / min(rods):.1f} yardsticks")
    assert min(many) < 2 * min(few)
    assert min(many) < 60 * min(rods)  # 22 of them in November 2026


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return float(file.read().split()[1]) * resource.getpagesize()


def test_status_imports_neither_torch_nor_mlflow_nor_optuna(lab: Lab) -> None:
    path = lab.sweep()
    lab.run(path)
    code = """
import sys
sys.argv[1:] = ["sweep", "status", "--json", sys.argv[1]]
from attnres_lab.cli import main
try:
    main()
except SystemExit:
    pass
assert not {"torch", "mlflow", "optuna", "pandas"} & set(sys.modules)
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    ).stdout
    assert json.loads(out)["done"] == 4


def test_leases_share_no_device_and_no_core() -> None:
    gpus = ["GPU-a", "GPU-b", "GPU-c", "GPU-d", "GPU-e"]
    leases = make_leases(LocalConfig(), Resources(devices=2), gpus)
    assert [lease.gpus for lease in leases] == [("GPU-a", "GPU-b"), ("GPU-c", "GPU-d")]
    cores = [core for lease in leases for core in lease.cores]
    assert len(cores) == len(set(cores))
    assert leases[0].environment()["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert [
        lease.gpus for lease in make_leases(LocalConfig(workers=3), Resources(devices=0), gpus)
    ] == [()] * 3
    assert make_leases(LocalConfig(), Resources(devices=8), gpus) == []
    cores = len(os.sched_getaffinity(0))
    # two ranks on CPU, each with its threads
    assert len(make_leases(LocalConfig(), Resources(devices=2, threads=cores), [])) == 1
    assert len(make_leases(LocalConfig(), Resources(devices=0), [])) == cores


def test_a_device_is_leased_to_as_many_trials_as_fit() -> None:
    """Fewer trials than there is room for spread over the devices."""
    gpus = ["GPU-a", "GPU-b"]
    for share, each in ((0.25, 4), (1 / 3, 3), (0.3, 3), (0.1, 10), (0.6, 1)):
        leases = make_leases(LocalConfig(), Resources(devices=share), gpus)
        assert sorted(lease.gpus for lease in leases) == sorted([("GPU-a",), ("GPU-b",)] * each)
    few = make_leases(LocalConfig(workers=2), Resources(devices=0.25), gpus)
    assert [lease.gpus for lease in few] == [("GPU-a",), ("GPU-b",)]
    assert few[0].environment()["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    assert len(make_leases(LocalConfig(workers=20), Resources(devices=0.05), ["GPU-a"])) == 20
    # nothing to share on a CPU
    cores = len(os.sched_getaffinity(0))
    assert len(make_leases(LocalConfig(), Resources(devices=0.25), [])) == cores


def test_four_trials_share_a_device(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """All four are on it at once."""
    monkeypatch.setattr("attnres_lab.sweep.launchers.local.visible_gpus", lambda: ["GPU-a"])
    monkeypatch.setattr(Lease, "take", _take)
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.1")
    settings = {"launcher": {"name": "local"}, "resources": {"devices": 0.25}}
    lab.run(lab.sweep(function="tests.sweep.synthetic:chain", **settings))
    events = [e[0] for e in lab.witness()]
    assert events == ["start"] * 4 + ["finish"] * 4
    assert {e[4] for e in lab.witness() if e[0] == "start"} == {"GPU-a"}


def test_four_trials_on_two_leases_never_share_a_device(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start takes a free lease; the witness shows by time that no lease was held twice."""
    monkeypatch.setattr(
        "attnres_lab.sweep.launchers.local.visible_gpus", lambda: ["GPU-a", "GPU-b"]
    )
    monkeypatch.setattr(Lease, "take", _take)
    lab.run(lab.sweep(function="tests.sweep.synthetic:chain"))
    held: dict[str, str] = {}
    device = {e[1]: e[4] for e in lab.witness() if e[0] == "start"}
    for event, hash, *_ in lab.witness():
        if event == "start":
            assert device[hash] not in held.values()
            held[hash] = device[hash]
        else:
            del held[hash]
    assert set(device.values()) == {"GPU-a", "GPU-b"}


def _take(self: Lease) -> None:
    os.environ.update(self.environment())
