"""Trials of several devices in a sweep."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
import yaml

from tests.sweep.conftest import BASE, Lab, study_states
from tests.sweep.test_crash import check_mlflow


@pytest.mark.slow
def test_two_ranks_are_one_trial_one_run_and_one_ask(lab: Lab) -> None:
    """DDP on two CPU ranks within one lease, by the real command; the ranks are gone afterwards."""
    (lab.path / "base.yaml").write_text(
        yaml.safe_dump(
            {**BASE, "train": {"batch_size": 4, "device": "cpu", "devices": 2, "log_every": 1}}
        )
    )
    path = lab.sweep(
        space={"optim.lr": {"log": [1e-4, 1e-2]}},
        sampler={"name": "random"},
        trials=1,
        launcher={"workers": 1},
        resources={"devices": 2},
        function="attnres_lab.training.run:run",
    )
    command = [sys.executable, "-m", "attnres_lab", "sweep", "run", str(path)]
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
