"""What is disturbed: a training run, a sweep, each from start to end. Without Git: what is not
committed may change between two runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np

from attnres_lab.cli import main
from attnres_lab.config import load
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep import engine
from attnres_lab.sweep.launchers import local
from attnres_lab.sweep.spec import load_spec
from attnres_lab.tracking import artifacts, readable_errors, rebuild, server, sqlite, worker
from attnres_lab.training.run import run
from tests.faults.forked import ROLES, beside, play, popen

TRIAL = local._trial
ENSURE_RUNNING = forkserver.ForkServer.ensure_running


def train(config: str, folder: str) -> int:
    """As ``attnres train`` does."""
    os.environ["PATH"] = ""
    return 0 if run(load(Path(config)), Path(folder)).status.state == "finished" else 3


def sweep(file: str, runs: str) -> int:
    """As ``attnres sweep run`` does, without the mirror; trials are forked from this process."""
    os.environ |= {"PATH": "", "ATTNRES_RUNS": runs, "ATTNRES_CACHE": f"{runs}-cache"}
    os.environ["SYNTHETIC_SECONDS"] = "0"
    local.START_METHOD = "fork"
    engine.SweepMirror = _no_mirror  # type: ignore[assignment,misc]
    return engine.run_sweep(load_spec(Path(file)), SweepFolder.named("s")).exit_code


def mirrored_sweep(file: str, runs: str, start: str = "fork") -> int:
    """As ``attnres sweep run`` does, with the mirror and the store; what is started is forked from
    this process, or, with ``start`` "forkserver", trials from the real server.
    """
    environment(runs)
    play("coordinator")
    subprocess.Popen = popen  # type: ignore[assignment,misc]
    local.START_METHOD = start
    if start == "fork":
        local._trial = _trial
    else:
        forkserver.ForkServer.ensure_running = _ensure_running  # type: ignore[method-assign]
    return engine.run_sweep(load_spec(Path(file)), SweepFolder.named("s")).exit_code


def mirror(_: str, runs: str) -> int:
    """As ``attnres track rebuild`` does, but for the drawing of pictures, which costs more than all
    that is written; and the store waits for the disk, as that of a live mirror.
    """
    environment(runs)
    artifacts.heat_map = lambda _: np.zeros((8, 8, 3), np.uint8)
    sqlite.hurry = lambda _: None
    with readable_errors():
        return len(list(rebuild(Path(runs)))) - 1


def command(runs: str, *words: str) -> int:
    """``attnres`` with these words."""
    environment(runs)
    subprocess.Popen = popen  # type: ignore[assignment,misc]
    local.START_METHOD = "fork"
    sys.argv = ["attnres", *words]
    # a server is not started: what comes before it counts
    server._taken = lambda port: True
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def environment(runs: str) -> None:
    """Of the folder of runs, and nobody else's."""
    os.environ |= {"PATH": "", "ATTNRES_RUNS": runs, "SYNTHETIC_SECONDS": "0.05"}
    os.environ |= {"ATTNRES_CACHE": str(beside(runs, "cache")), ROLES: str(beside(runs, "roles"))}
    Path(os.environ[ROLES]).mkdir(exist_ok=True)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    worker.TURN = 0.1


def _ensure_running(server: forkserver.ForkServer) -> None:
    ENSURE_RUNNING(server)
    play("forkserver", server._forkserver_pid)  # type: ignore[attr-defined]


def _trial(*args: Any) -> None:
    play("trial")
    TRIAL(*args)


def _no_mirror(*_: object) -> Any:
    return nullcontext()
