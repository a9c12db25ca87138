"""A run that changes its layout of processes every two steps is the unbroken run of one layout, in
float64.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import double
import psutil
import pytest
import torch
from helpers import tiny

from attnres_lab.config import RunConfig, content_hash, to_yaml
from attnres_lab.runs.folder import RunFolder

EACH = 2  # steps in a layout
BASE = {
    "model.num_layers": 4,
    "train.device": "cpu",
    "train.batch_size": 8,
    "train.log_every": EACH,  # where a run that is asked to stop does
    "train.checkpoint_every": EACH,
}


def piped(stages: int, schedule: str = "Interleaved1F1B", count: int = 4) -> dict[str, Any]:
    pipeline = {"virtual_stages": stages, "schedule": schedule, "microbatches": count}
    return {"train.devices": 2, "train.strategy": "pipeline", "train.pipeline": pipeline}


LAYOUTS: dict[str, dict[str, Any]] = {
    "pipeline": piped(2),
    "eight batches": piped(2, count=8),
    "two stages": piped(1, "1F1B"),
    "one process": {},
    "small batches": {"train.micro_batch_size": 2},
    "ddp": {"train.devices": 2, "train.strategy": "ddp"},
    "fsdp": {"train.devices": 2, "train.strategy": "fsdp"},
}
BLOCK = {
    "model.residual": {"name": "block", "block_size": 3},
    "model.tie_embeddings": True,
    "optim.residual_clip": 0.5,
}


class Ranks:
    """Two processes that train in one folder after the other."""

    def __init__(self, queue: Path) -> None:
        queue.mkdir()
        self.queue, self.count = queue, 0
        script = str(Path(__file__).parent / "double.py")
        self.process = subprocess.Popen([sys.executable, script, str(queue)])

    def train(self, folder: Path) -> None:
        """In both; returns when the first has done."""
        file = self.queue / str(self.count)
        self.count += 1
        file.with_suffix(".new").write_text(str(folder))
        file.with_suffix(".new").rename(file)
        while not file.with_suffix(".done").exists():
            assert self.process.poll() is None
            time.sleep(0.05)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    both = Ranks(tmp_path_factory.mktemp("ranks") / "queue")
    yield both
    if both.process.poll() is None:
        main = psutil.Process(both.process.pid)
        for process in (*main.children(), main):
            process.kill()
    both.process.wait()


def start(config: RunConfig, folder: Path, before: Path | None, stop: bool) -> None:
    """Lay a run out: from the checkpoint ``before``, to its next row or to the end."""
    files = RunFolder(folder)
    files.checkpoint.parent.mkdir(parents=True)
    files.config.write_text(to_yaml(config))
    if before is not None:
        checkpoint = torch.load(before, weights_only=True)
        checkpoint |= {"config": to_yaml(config), "config_hash": content_hash(config)}
        torch.save(checkpoint, files.checkpoint)
    if stop:
        files.stop.touch()


def train(ranks: Ranks | None, config: RunConfig, folder: Path) -> None:
    """One process is this one."""
    if config.train.world == 1:
        return double.train(folder)
    assert ranks is not None
    ranks.train(folder)


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    path = RunFolder(folder).checkpoint.with_name(f"{step}.ckpt")
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    assert all(x.dtype == torch.float64 for x in found.values())
    return found


def distances(
    ranks: Ranks | None, tmp_path: Path, common: dict[str, Any], order: list[str]
) -> dict[str, float]:
    """After each layout of ``order``, the largest difference of a weight from the unbroken run of
    the first.
    """
    common = {**BASE, **common, "budget": f"{EACH * len(order)} steps"}
    whole = tmp_path / "whole"
    config = tiny(tmp_path, **common, **LAYOUTS[order[0]])
    start(config, whole, None, stop=False)
    train(ranks, config, whole)
    found, before = {}, None
    for place, layout in enumerate(order, 1):
        folder, step = tmp_path / str(place), place * EACH
        config = tiny(tmp_path, **common, **LAYOUTS[layout])
        start(config, folder, before, stop=True)
        train(ranks, config, folder)
        before = RunFolder(folder).checkpoint
        ours, theirs = weights(folder, step), weights(whole, step)
        assert ours.keys() == theirs.keys()
        found[f"{place}: {layout}"] = max(
            float((ours[name] - theirs[name]).abs().max()) for name in ours
        )
        print(place, layout, found[f"{place}: {layout}"], flush=True)
    return found


@pytest.mark.slow
def test_a_run_goes_on_in_every_layout_and_back(ranks: Ranks, tmp_path: Path) -> None:
    """To 1e-12: a batch that is cut differently, a norm over other parts and the deposits of other
    stages are sums in another order.
    """
    order = ["pipeline", "small batches", "eight batches", "one process", "pipeline", "ddp"]
    order += ["two stages", "fsdp", "pipeline"]
    for name, distance in distances(ranks, tmp_path, BLOCK, order).items():
        assert distance < 1e-12, name


@pytest.mark.slow
def test_where_sums_keep_their_order_a_run_is_the_same_to_the_bit(
    ranks: Ranks, tmp_path: Path
) -> None:
    """The baseline, whose stages deposit nothing, unclipped, in the same micro-batches."""
    order = ["pipeline", "small batches", "two stages", "pipeline"]
    found = distances(ranks, tmp_path, {"optim.clip": 0.0}, order)
    assert set(found.values()) == {0.0}, found


@pytest.mark.slow
def test_another_number_of_micro_batches_goes_on_with_the_very_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-12: a batch that is cut differently is a sum in another order. A checkpoint of as many
    steps has another number of batches, by which Lightning steps.
    """
    order = ["2", "8", "2", "1"]
    for size in order:
        monkeypatch.setitem(LAYOUTS, size, {"train.micro_batch_size": int(size)})
    for name, distance in distances(None, tmp_path, BLOCK, order).items():
        assert distance < 1e-12, name
