"""What docs/editing.md says that an edit of a sweep file does to the trials that ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.spec import load_spec
from tests.sweep.conftest import Lab

STOP = {"name": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "val/loss"}
LOGGER = {"name": "pytorch_lightning.loggers.CSVLogger", "save_dir": "logs"}
RATES, OVER = [1e-3, 3e-3], "overrides"
# the edit; how many of the four trials stand, and how many are new
EDITS: list[tuple[dict[str, Any], int, int]] = [
    ({"space": {"optim.lr": RATES, "seed": [0, 1, 2]}}, 4, 2),
    ({"space": {"optim.lr": [*RATES, 1e-2], "seed": [0, 1]}}, 4, 2),
    ({"space": {"seed": [0, 1], "optim.lr": RATES}}, 4, 0),
    ({"space": {"optim.lr": RATES, "seed": [1]}}, 2, 0),
    ({OVER: {"model.dim": 16}}, 0, 4),
    ({OVER: {"data.seq_len": 16}}, 0, 4),
    ({OVER: {"optim.warmup": 0.2}}, 0, 4),
    ({OVER: {"budget": "7 steps"}}, 0, 4),
    ({OVER: {"callbacks": [STOP]}}, 0, 4),
    ({OVER: {"loggers": [LOGGER]}}, 4, 0),
    ({OVER: {"name": "other"}}, 4, 0),
    ({OVER: {"train.log_every": 3, "train.checkpoint_every": 3, "train.probe_every": 3}}, 4, 0),
    ({OVER: {"data.cache_dir": "elsewhere"}}, 4, 0),
    ({"function": "tests.sweep.synthetic:fails"}, 0, 4),
    ({"launcher": {"workers": 1}, "resources": {"time_limit": 1}, "retry": {"backoff": 1}}, 4, 0),
    ({"stop": {"trials": 1}, "question": "Why?", "objective": {"metric": "train/loss"}}, 4, 0),
]


def hashes(path: Path) -> set[str]:
    return {trial.entry.hash for trial in Plan(load_spec(path)).known()}


@pytest.mark.parametrize(("edit", "stand", "new"), EDITS, ids=lambda value: str(value)[:60])
def test_an_edit_does_to_trials_what_the_page_says(
    lab: Lab, edit: dict[str, Any], stand: int, new: int
) -> None:
    before, after = hashes(lab.sweep()), hashes(lab.sweep(**edit))
    assert (len(before & after), len(after - before)) == (stand, new)


def test_the_base_counts_by_what_it_says_and_not_by_its_name(lab: Lab) -> None:
    before = hashes(lab.sweep())
    base = yaml.safe_load((lab.path / "base.yaml").read_text())
    (lab.path / "renamed.yaml").write_text(yaml.safe_dump(base))
    assert hashes(lab.sweep(base="renamed.yaml")) == before
    (lab.path / "base.yaml").write_text(yaml.safe_dump(base | {"budget": "9 steps"}))
    assert not hashes(lab.sweep()) & before
