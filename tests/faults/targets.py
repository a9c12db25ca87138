"""What is disturbed: a training run, a sweep, each from start to end. Without Git: what is not
committed may change between two runs.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from attnres_lab.config import load
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep import engine
from attnres_lab.sweep.launchers import local
from attnres_lab.sweep.spec import load_spec
from attnres_lab.training.run import run


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


def _no_mirror(*_: object) -> Any:
    return nullcontext()
