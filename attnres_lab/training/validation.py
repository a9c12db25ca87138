"""When a run validates, and on how much of the validation set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from attnres_lab.config import RunConfig
from attnres_lab.training.callbacks import StepCallback
from attnres_lab.training.module import LitTransformer

#: Of the run's training FLOPs, for the validations before the end: so that they stay under 2 % of
#: its time, where small batches cost more than their FLOPs. A forward pass is a third of a training
#: step's FLOPs for the same tokens, with a frozen trunk at most half.
SHARE = 0.008
#: Validations before the end: as many as the share pays for on the whole set, at most ``MOST``;
#: where it pays for less than ``FEWEST`` there are so many on a part of the set.
MOST, FEWEST = 20, 5


@dataclass(frozen=True)
class Schedule:
    """Validations every ``every`` steps (0: none before the end), before the end on every
    ``stride``-th example.
    """

    every: int
    stride: int = 1


def schedule(config: RunConfig, examples: int) -> Schedule:
    """As ``train.val_every`` says; by default as ``SHARE`` pays for, from the config and the number
    of ``examples`` in the validation set alone.
    """
    train, steps = config.train, config.steps
    if train.val_every is not None:
        return Schedule(train.val_every)
    if steps is None:
        return Schedule(0)  # of a budget in seconds nobody knows the steps
    passes = 2 if config.optim.freezes_trunk else 3
    affordable = passes * SHARE * steps * train.batch_size  # examples, forward
    points, rows = min(MOST, int(affordable / examples)), examples
    if points < FEWEST:
        points, rows = FEWEST, int(affordable / FEWEST)
    # each replica must have a batch of its own
    if rows < 1 or math.ceil(rows / train.micro) < train.replicas:
        return Schedule(0)
    return Schedule(math.ceil(steps / (points + 1)), math.ceil(examples / rows))


class Validation(StepCallback):
    """Lightning's validation loop as the schedule says and at the end, whatever the number of
    micro-batches.
    """

    _schedule: Schedule | None = None

    def on_step_end(self, trainer: pl.Trainer, module: LitTransformer) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self._schedule is None:
            self._schedule = schedule(self.run.config, data.val_examples)
        every = self._schedule.every
        due = module.finished or (every > 0 and module.step % every == 0)
        if not due or self.run.state != "running":
            return
        loop = trainer.fit_loop.epoch_loop.val_loop
        stride = 1 if module.finished else self._schedule.stride
        if data.val_stride != stride:
            data.val_stride, loop._combined_loader = stride, None  # it asks for batches anew
        # as Lightning's own loop does it, which counts batches where we count steps
        connector = trainer._logger_connector
        first, trainer.validating = connector._first_loop_iter, True
        loop.run()
        connector._first_loop_iter, trainer.training = first, True

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, LitTransformer)
        self.run.write(trainer, module, dict(module.validation))
        if not math.isfinite(module.validation["val/loss"]):
            self.run.state = "diverged"
