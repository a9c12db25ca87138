"""A checkpoint of one layout of processes goes on in every other, in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from attnres_lab.config import RunConfig, content_hash, to_yaml
from attnres_lab.runs.folder import RunFolder

STOPPED, STEPS = 4, 8
BASE = {
    "budget": f"{STEPS} steps",
    "model.num_layers": 4,
    "train.device": "cpu",
    "train.batch_size": 8,
    "train.checkpoint_every": STOPPED,
}


def piped(ranks: int, stages: int, schedule: str = "Interleaved1F1B") -> dict[str, Any]:
    pipeline = {"virtual_stages": stages, "schedule": schedule, "microbatches": 4}
    return {"train.devices": ranks, "train.strategy": "pipeline", "train.pipeline": pipeline}


PIPE = piped(2, 2)
LAYOUTS = {
    "one": {},
    "ddp": {"train.devices": 2, "train.strategy": "ddp"},
    "fsdp": {"train.devices": 2, "train.strategy": "fsdp"},
    "two stages": piped(2, 1, "1F1B"),
    "eight stages": piped(2, 4),
    "four ranks": piped(4, 2),
}
#: With the micro-batches of the pipeline, in its order; only the place of a stage differs.
IN_ORDER = {
    "one": {"train.micro_batch_size": 2},
    "two stages": LAYOUTS["two stages"],
    "eight stages": LAYOUTS["eight stages"],
    "four ranks": LAYOUTS["four ranks"],
}
BLOCK = {
    "model.residual": {"name": "block", "block_size": 3},
    "model.tie_embeddings": True,
    "optim.residual_clip": 0.5,
}
BASELINE = {"optim.clip": 1e9}  # never reached: the norm is a sum over stages


def train(config: RunConfig, folder: Path, source: Path | None = None) -> dict[str, torch.Tensor]:
    """The weights in the end, or at the step where it was stopped; ``source``: the checkpoint to go
    on from, taken as one of ``config``.
    """
    files = RunFolder(folder)
    files.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    files.config.write_text(to_yaml(config))
    if source is not None:
        checkpoint = torch.load(RunFolder(source).checkpoint, weights_only=True)
        assert checkpoint["run"]["step"] == STOPPED
        checkpoint |= {"config": to_yaml(config), "config_hash": content_hash(config)}
        torch.save(checkpoint, files.checkpoint)
    script = str(Path(__file__).parent / "double.py")
    inherited = {**os.environ, "ATTNRES_LOCKED": str(files.path)}
    done = subprocess.run([sys.executable, script, str(folder)], env=inherited, check=False)
    assert done.returncode == 0
    weights: dict[str, torch.Tensor] = torch.load(files.checkpoint, weights_only=True)["state_dict"]
    assert all(x.dtype == torch.float64 for x in weights.values())
    return weights


def stopped(config: RunConfig, folder: Path) -> Path:
    """A run that stops at its first row."""
    folder.mkdir()
    RunFolder(folder).stop.touch()
    train(config, folder)
    return folder


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.slow
def test_a_checkpoint_goes_on_in_every_layout_and_back(tmp_path: Path) -> None:
    """To 1e-12: a batch that is cut differently, a norm over other parts and the deposits of other
    stages are sums in another order.
    """
    pipe = tiny(tmp_path, **BASE, **BLOCK, **PIPE)
    unbroken = train(pipe, tmp_path / "pipe")
    source = stopped(pipe, tmp_path / "stopped")
    for name, layout in LAYOUTS.items():
        other = tiny(tmp_path, **BASE, **BLOCK, **layout)
        there = train(other, tmp_path / f"to {name}", source)
        back = train(pipe, tmp_path / f"from {name}", stopped(other, tmp_path / name))
        print(name, furthest(there, unbroken), furthest(back, unbroken))
        assert furthest(there, unbroken) < 1e-12, name
        assert furthest(back, unbroken) < 1e-12, name


@pytest.mark.slow
def test_where_sums_keep_their_order_it_goes_on_to_the_bit(tmp_path: Path) -> None:
    """The baseline's stages hand on one gradient; over the same micro-batches, one process adds up
    what a pipeline does, in its order.
    """
    pipe = tiny(tmp_path, **BASE, **BASELINE, **PIPE)
    unbroken = train(pipe, tmp_path / "pipe")
    source = stopped(pipe, tmp_path / "stopped")
    for name, layout in IN_ORDER.items():
        other = tiny(tmp_path, **BASE, **BASELINE, **layout)
        there = train(other, tmp_path / f"to {name}", source)
        back = train(pipe, tmp_path / f"from {name}", stopped(other, tmp_path / name))
        print(name, furthest(there, unbroken), furthest(back, unbroken))
        for weights in (there, back):
            assert all(torch.equal(weights[key], unbroken[key]) for key in unbroken), name
