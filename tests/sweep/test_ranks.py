"""Trials of several devices in a sweep."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import psutil
import pytest
import yaml

from tests.sweep.conftest import BASE, Lab, study_states
from tests.sweep.test_crash import check_mlflow


def two_ranks(lab: Lab, **base: Any) -> list[str]:
    """The real command for one trial of two CPU ranks."""
    train = {"batch_size": 4, "device": "cpu", "devices": 2, "log_every": 1}
    (lab.path / "base.yaml").write_text(yaml.safe_dump({**BASE, "train": train, **base}))
    path = lab.sweep(
        space={"optim.lr": {"log": [1e-4, 1e-2]}},
        sampler={"name": "random"},
        trials=1,
        launcher={"workers": 1},
        resources={"devices": 2},
        function="attnres_lab.training.run:run",
    )
    return [sys.executable, "-m", "attnres_lab", "sweep", "run", str(path)]


@pytest.mark.slow
def test_two_ranks_are_one_trial_one_run_and_one_ask(lab: Lab) -> None:
    """DDP on two CPU ranks within one lease, by the real command; the ranks are gone afterwards."""
    command = two_ranks(lab)
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (hash,) = lab.states()
    run = lab.folder.trial(hash)
    assert run.status().state == "finished"
    assert [row["step"] for row in run.rows() if "train/loss" in row] == list(range(1, 11))
    assert study_states(lab) == ["COMPLETE"]
    check_mlflow(f"sqlite:///{lab.path}/runs/mlflow.db", trials=1)
    assert not [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(run.path) in " ".join(p.info["cmdline"] or [])
    ]


@pytest.mark.slow
def test_a_killed_rank_is_a_kill_and_tried_again(lab: Lab) -> None:
    """Out of memory, say; a bug would fail the trial at once. Every step has its row once."""
    command = two_ranks(lab, budget="300 steps")
    sweep = subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, text=True)
    deadline, second = time.monotonic() + 240, None
    while second is None and time.monotonic() < deadline and sweep.poll() is None:
        time.sleep(0.02)
        if any(run.metrics.exists() for run in map(lab.folder.trial, trials(lab))):
            second = next(filter(is_second_rank, psutil.process_iter()), None)
    assert second is not None
    second.kill()
    output, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, output
    assert "killed" in output
    (run,) = map(lab.folder.trial, trials(lab))
    assert run.status().state == "finished"
    assert [row["step"] for row in run.rows() if "train/loss" in row] == list(range(1, 301))


def trials(lab: Lab) -> list[str]:
    return [entry.hash for entry in lab.folder.plan()]


def is_second_rank(process: psutil.Process) -> bool:
    """Of this test, whose environment the ranks have."""
    with suppress(psutil.Error):
        found = process.environ()
        mine = found.get("ATTNRES_RUNS") == os.environ["ATTNRES_RUNS"]
        return mine and found.get("LOCAL_RANK") == "1"
    return False
