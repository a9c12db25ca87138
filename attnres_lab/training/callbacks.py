"""What turns training into the run folder's files: rows, depth records, and the end; validation
has a file of its own.

Small Lightning callbacks in this order; each is of use by itself on a ``LitTransformer``. A depth
record is closed before the validation of its step: what it watches is the training batch.
"""

from __future__ import annotations

import math
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch

from attnres_lab.config import RunConfig
from attnres_lab.runs.folder import RunFolder, State, write_json
from attnres_lab.training.module import LitTransformer
from attnres_lab.training.probe import Probe
from attnres_lab.training.system_metrics import SystemMetrics, peak_flops

#: In the last row: the mean over the last steps, which does not depend on ``train.log_every``.
FINAL_LOSS = "train/final_loss"


@dataclass
class RunLog:
    """What the callbacks of a run share: its folder, its newest numbers, how it ends."""

    folder: RunFolder
    config: RunConfig
    state: State = "running"
    last: dict[str, Any] = field(default_factory=dict)  # the newest value of each metric
    validated: int = -1  # the step of the newest validation

    def write(self, trainer: pl.Trainer, module: LitTransformer, values: dict[str, Any]) -> None:
        """Append a row at the module's step."""
        tokens = module.step * self.config.tokens_per_step
        row = {
            "step": module.step,
            "time": time.time(),
            "tokens": tokens,
            "flops": tokens * self.config.flops_per_token,
            "seconds": module.seconds,
            **values,
        }
        self.add(row)
        if trainer.is_global_zero:
            self.folder.append_metrics(row)

    def add(self, row: dict[str, Any]) -> None:
        """Take note of a row of the folder."""
        self.last.update(row)
        if "val/loss" in row:
            self.validated = row["step"]


def final_numbers(run: RunLog, module: LitTransformer) -> dict[str, Any]:
    """The keys of ``result.json``."""
    params = run.config.params
    keep = {k: v for k, v in run.last.items() if k != "time" and not k.startswith("system/")}
    if FINAL_LOSS in keep:
        keep["train/loss"] = keep.pop(FINAL_LOSS)
    return keep | {
        "flops_6nd": 6 * params.active * keep.get("tokens", 0),
        "device_seconds": module.seconds * run.config.train.world,
        "peak_memory_bytes": peak_memory(module.device),
        "params": params.non_embedding,
        "params_total": params.total,
        "params_active": params.active,
    }


class StepCallback(pl.Callback):
    """A callback for optimiser steps; a step may have several batches."""

    def __init__(self, run: RunLog) -> None:
        self.run, self.train = run, run.config.train

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(module, LitTransformer)
        if module.step_ended:
            self.on_step_end(trainer, module)

    def on_step_end(self, trainer: pl.Trainer, module: LitTransformer) -> None:
        """After optimiser step ``module.step``."""


class Rows(StepCallback):
    """A row every ``train.log_every`` steps; a loss that is not finite ends the run."""

    def __init__(self, run: RunLog) -> None:
        super().__init__(run)
        self._logging = 0.0  # seconds that the last row took

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, LitTransformer)
        self._system = SystemMetrics(module.device)
        self._peak = peak_flops(module.device, str(trainer.precision))

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, LitTransformer)
        step = module.step + 1
        module.watch.exact = step == module.total_steps or step % self.train.log_every == 0

    def on_step_end(self, trainer: pl.Trainer, module: LitTransformer) -> None:
        module.add_time()
        if module.finished or module.step % self.train.log_every == 0:
            self._row(trainer, module)
            self._logging = time.perf_counter() - module.watch.last

    def _row(self, trainer: pl.Trainer, module: LitTransformer) -> None:
        config = self.run.config
        mean, per_step = module.since_row()
        loss = trainer.strategy.reduce(mean, reduce_op="mean")
        flops_per_second = config.tokens_per_step * config.flops_per_token / per_step
        row = {
            "train/loss": float(loss),
            "optim/lr": module.lr,
            "optim/grad_norm": float(module.grad_norm),
            "perf/step_seconds": per_step,
            "perf/tokens_per_second": config.tokens_per_step / per_step,
            "perf/flops_per_second": flops_per_second,
            "peak_memory_bytes": peak_memory(module.device),
            **{f"perf/{part}_seconds": value for part, value in module.watch.parts.items()},
            "perf/logging_seconds": self._logging,
            **module.network_metrics(),
            **self._system.sample(),
        }
        if module.finished:
            mean = module.recent.mean()
            row[FINAL_LOSS] = float(trainer.strategy.reduce(mean, reduce_op="mean"))
        if self._peak:
            row["perf/utilization"] = flops_per_second / self._peak / self.train.world
        self.run.write(trainer, module, row)
        if not math.isfinite(row["train/loss"]):
            self.run.state = "diverged"


class DepthRecords(StepCallback):
    """A depth record every ``train.probe_every`` steps and at the last, in ``artifacts/depth``."""

    def __init__(self, run: RunLog) -> None:
        super().__init__(run)
        self._probe: Probe | None = None  # watches the step under way

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, LitTransformer)
        every, step = self.train.probe_every, module.step + 1
        due = step == module.total_steps or (every > 0 and step % every == 0)
        # a probe reads whole weights of plain modules
        if due and not self._probe and self.train.strategy != "fsdp" and not self.train.compile:
            self._probe = module.probe()
            self._probe.__enter__()

    def on_step_end(self, trainer: pl.Trainer, module: LitTransformer) -> None:
        probe, self._probe = self._probe, None
        if probe is None:
            return
        probe.__exit__(None, None, None)
        if self.run.state != "running":
            return
        record = probe.record(module.step)
        self.run.write(trainer, module, probe.metrics())
        if trainer.is_global_zero:
            files, name = self.run.folder, f"step-{module.step:06d}.json"
            write_json(files.new_artifact(files.depth.name, name), record)


class End(StepCallback):
    """Checkpoints, and the end of the run: its budget, divergence, SIGTERM, Ctrl-C, a ``stop``
    file, or another callback that stops the trainer, with which the run has finished.
    """

    def __init__(self, run: RunLog) -> None:
        super().__init__(run)
        self._signalled = False

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # the last through srun
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = True

    def on_step_end(self, trainer: pl.Trainer, module: LitTransformer) -> None:
        done, every = module.finished or trainer.should_stop, self.train.checkpoint_every
        if self.run.state == "running":
            stop = self._asked_to_stop(trainer, module)
            if done or stop or (every and module.step % every == 0):
                self.run.folder.sync_metrics()  # a checkpoint vouches for the rows up to its step
                trainer.save_checkpoint(self.run.folder.checkpoint, weights_only=False)
            if stop and not done:
                self.run.state = stop
        if done or self.run.state != "running":
            trainer.should_stop = True

    def _asked_to_stop(self, trainer: pl.Trainer, module: LitTransformer) -> State | None:
        word: State | None = None
        if self._signalled:
            word = "stopped"
        elif module.step % self.train.log_every == 0 and self.run.folder.stop.exists():
            prune = self.run.folder.stop.read_text().strip() == "prune"
            word = "pruned" if prune else "stopped"
        if trainer.world_size > 1:
            word = trainer.strategy.broadcast(word)
        return word


def peak_memory(device: torch.device) -> int:
    """Peak bytes: of the device's allocator on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
