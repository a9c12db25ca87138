"""A sweep file to vary, and a coordinator in this process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from attnres_lab.runs.sweep import SweepFolder

BASE = {
    "model": {"dim": 32, "num_layers": 4, "num_heads": 2},
    "budget": "10 steps",
    "train": {"batch_size": 4},
    "data": {"seq_len": 64, "val_tokens": 1024},
}


class Lab:
    """A folder with a base run, sweep files and a runs folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        (path / "base.yaml").write_text(yaml.safe_dump(BASE))

    def sweep(self, text: dict[str, Any] | str | None = None, **changes: Any) -> Path:
        """Write ``sweep.yaml``: the plain one with ``changes``, or ``text``."""
        plain = {
            "name": "s",
            "base": "base.yaml",
            "space": {"optim.lr": [1e-3, 3e-3], "seed": [0, 1]},
            "launcher": {"workers": 2},
            "retry": {"backoff": 0.05},
            "function": "tests.sweep.synthetic:quick",
        }
        path = self.path / "sweep.yaml"
        path.write_text(
            text if isinstance(text, str) else yaml.safe_dump({**plain, **changes}, sort_keys=False)
        )
        return path

    @property
    def folder(self) -> SweepFolder:
        return SweepFolder(self.path / "runs" / "sweeps" / "s")

    def run(self, path: Path, **options: Any) -> Any:
        from attnres_lab.sweep.engine import run_sweep
        from attnres_lab.sweep.spec import load_spec

        return run_sweep(load_spec(path), self.folder, **options)

    def states(self) -> dict[str, str]:
        return {e.hash: self.folder.trial(e.hash).status().state for e in self.folder.plan()}

    def witness(self) -> list[list[str]]:
        path = self.folder.path / "witness.txt"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Trials are forked from this process, which spares each test the seconds of a fork server's
    start; the slow tests use the real one.
    """
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("attnres_lab.sweep.launchers.local.START_METHOD", "fork")
    monkeypatch.setattr("attnres_lab.sweep.engine.SweepMirror", _no_mirror)
    monkeypatch.chdir(Path(__file__).parents[2])
    return Lab(tmp_path)


def _no_mirror(*_: object) -> Any:
    from contextlib import nullcontext

    return nullcontext()


def study_states(lab: Lab) -> list[str]:
    """Names of the Optuna trials' states, in order."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study = optuna.load_study(
        study_name="s", storage=JournalStorage(JournalFileBackend(str(lab.folder.journal)))
    )
    return [t.state.name for t in study.trials]


def in_process(target: Callable[..., Any], *args: Any) -> Any:
    """``target`` in a forked process, to be killed."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process
