"""What the curve of ``val/loss`` costs: training steps with the default validations and without,
in turn in one run.

python -m benchmarks.validation 12:30 36:14 64:8      widths of the quickstart, and pairs of blocks
"""

from __future__ import annotations

import csv
import datetime
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytorch_lightning as pl

from attnres_lab.config import RunConfig, load
from attnres_lab.training.module import LitTransformer
from attnres_lab.training.run import run
from attnres_lab.training.validation import Schedule, Validation, schedule

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).parent / "results" / f"{datetime.date.today()}-validation.csv"
SIZES = {12: 140, 36: 217, 64: 270}  # width of the quickstart, and its steps


class Turns(pl.Callback):
    """Blocks of as many steps as lie between two validations: with one at the end, without,
    without, with; so a drift cancels. ``cpu`` and ``wall``: seconds of each block; ``own``: CPU
    seconds of each validation.
    """

    def __init__(self, found: Schedule) -> None:
        self.found, self.block = found, found.every
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.own: list[float] = []
        self._began = (0.0, 0.0)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        (validation,) = (c for c in trainer.callbacks if isinstance(c, Validation))  # type: ignore[attr-defined]
        self.validation, step = validation, validation.on_step_end

        def timed(trainer: pl.Trainer, module: LitTransformer) -> None:
            began = time.process_time()
            step(trainer, module)
            if module.step % self.block == 0 and validation._schedule == self.found:
                self.own.append(time.process_time() - began)

        validation.on_step_end = timed  # type: ignore[method-assign]
        self._next()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % self.found.every:
            return
        cpu, wall = time.process_time() - self._began[0], time.perf_counter() - self._began[1]
        self.cpu.append(cpu)
        self.wall.append(wall)
        self._next()

    def _next(self) -> None:
        """The time begins after what is set here."""
        with_one = len(self.cpu) % 4 in (0, 3)
        self.validation._schedule = self.found if with_one else replace(self.found, every=0)
        self._began = time.process_time(), time.perf_counter()


def measure(width: int, pairs: int) -> dict[str, Any]:
    """Medians over pairs of blocks, with the 95 % interval of the bootstrap, and the quartiles; and
    ``own_percent``: the CPU of a validation by that of a block without.
    """
    config = _config(width, SIZES[width])
    examples = config.data.val_tokens // config.data.seq_len
    found = schedule(config, examples)
    turns = Turns(found)
    with TemporaryDirectory() as place:
        longer = _config(width, (2 * pairs + 4) * found.every + 1)
        run(longer, Path(place) / "run", callbacks=[turns])
    row: dict[str, Any] = {
        "date": datetime.date.today(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "size": config.model.size,
        "validate_every": found.every,
        "examples": -(-examples // found.stride),
        "pairs": pairs,
    }
    for name, times in (("cpu", turns.cpu), ("wall", turns.wall)):
        blocks = np.array(times[4 : 4 + 2 * pairs])  # the first ones warm up
        one, other = blocks.reshape(-1, 2).T
        flip = np.arange(pairs) % 2 == 1  # without, with
        ratios = np.where(flip, other / one, one / other) - 1
        drawn = np.median(np.random.default_rng(0).choice(ratios, (4000, pairs)), 1)
        values = [statistics.median(ratios), *np.quantile(drawn, (0.025, 0.975))]
        values += [*np.quantile(ratios, (0.25, 0.75))]
        for kind, value in zip(("percent", "low", "high", "q1", "q3"), values, strict=True):
            row[f"{name}_{kind}"] = round(100 * float(value), 2)
        row[f"{name}_step_ms"] = round(1000 * float(np.median(blocks)) / found.every, 2)
    plain = [block for index, block in enumerate(turns.cpu) if index > 3 and index % 4 in (1, 2)]
    row["own_percent"] = round(100 * float(np.median(turns.own) / np.median(plain)), 2)
    return row


def _config(width: int, steps: int) -> RunConfig:
    return load(
        ROOT / "experiments" / "quickstart.yaml",
        {
            "model.dim": width,
            "budget": f"{steps} steps",
            "train.checkpoint_every": 0,
            "train.probe_every": 0,
        },
    )


def main() -> None:
    """A row for each size, added as soon as it is there."""
    for words in sys.argv[1:]:
        width, pairs = map(int, words.split(":"))
        row = measure(width, pairs)
        print(row, flush=True)
        new = not FILE.exists()
        with FILE.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
