"""The LightningModule: a run's task with optimiser and schedule, for any ``pl.Trainer``."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from attnres_lab.config import RunConfig, content_hash, to_yaml
from attnres_lab.training import lora
from attnres_lab.training.optim import clip_gradients, lr_factor, make_optimizer
from attnres_lab.training.probe import Probe
from attnres_lab.training.task import make_task


class Stopwatch:
    """Seconds by part of the step; it waits for the device only while ``exact`` (a logged step),
    else it would slow training.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.exact = device, False
        self.parts, self.last = dict[str, float](), time.perf_counter()

    def lap(self, part: str) -> None:
        """Add the time since the last lap to ``part``."""
        if self.exact and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now


#: Steps whose mean loss is the final ``train/loss``, however often rows are written.
WINDOW = 10


class LitTransformer(pl.LightningModule):
    """The network of ``config`` with its loss, optimiser and schedule. Batches are the task's:
    tokens [B, T + 1] of a language, pairs of images and labels.

    It logs ``train/loss`` and ``val/loss`` (nats per token or image), of a language ``val/bpb``
    (bits per byte; where a ``CorpusDataModule`` tells the bytes of a token), of images
    ``val/accuracy``.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config
        self.task = make_task(config)
        self.model = self.task.network()
        lora.adapt(self.model, config.optim.lora, config.seed)
        self.total_steps = config.steps
        self.step = 0  # optimiser steps done
        self.seconds = 0.0  # of all steps so far, what a probe does in them too; no validation
        self.loss_sum = torch.zeros((), dtype=torch.float64)  # since the last logged row,
        self.row_start = (0, 0.0)  # whose step and seconds these are
        self.recent = torch.zeros(0, dtype=torch.float64)  # losses of the last WINDOW steps
        self.grad_norm = torch.zeros(())
        self.lr = 0.0  # of the last step
        self.validation: dict[str, float] = {}  # of the whole set, in double precision
        self._val_own = math.inf  # batches of the validation that this process counts
        self.watch = Stopwatch(torch.device("cpu"))
        self._step_loss = torch.zeros(())  # of the step under way, over its micro-batches
        self._begun = self._timed = 0  # steps
        self._zero_validation()

    def configure_model(self) -> None:
        if self.config.train.strategy == "fsdp":
            from torch.distributed.fsdp import fully_shard

            mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
            for sublayer in self.model.sublayers:
                fully_shard(sublayer, mesh=mesh)
            fully_shard(self.model, mesh=mesh)
        if self.config.train.compile:
            self.model.compile()

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Of all parameters that this process trains."""
        return make_optimizer(self.model, self.config.optim)

    def probe(self) -> Probe:
        """A probe of the network, to be entered before a step."""
        return Probe(self.model)

    def network_metrics(self) -> dict[str, float]:
        """What the sublayers measured in the last optimiser step; collective where there are
        several processes.
        """
        return self.model.metrics()

    def _lr_factor(self, step: int) -> float:
        """Of the step after ``step`` steps; a budget of seconds goes by the time."""
        if self.total_steps:
            return lr_factor(self.config.optim, min((step + 1) / self.total_steps, 1.0))
        return lr_factor(self.config.optim, min(self.seconds / self._budget_seconds, 1.0))

    @property
    def _budget_seconds(self) -> float:
        return self.config.budget.value

    @property
    def progress(self) -> float:
        """Fraction of the budget that is spent."""
        if self.total_steps:
            return self.step / self.total_steps
        return self.seconds / self._budget_seconds

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.progress >= 1

    @property
    def step_ended(self) -> bool:
        """Whether the batch just trained on was the last of its optimiser step."""
        return self.step > self._begun

    def loss(self, batch: Any) -> Tensor:
        """Mean cross-entropy of a ``batch`` in nats per token or image, in fp32."""
        return self.task.loss(self.model, batch)

    def since_row(self) -> tuple[Tensor, float]:
        """Mean loss and seconds of a step since the last call, which a logged row is of."""
        step, seconds = self.row_start
        count = max(self.step - step, 1)
        found = self.loss_sum / count, (self.seconds - seconds) / count
        self.loss_sum.zero_()
        self.row_start = (self.step, self.seconds)
        return found

    def on_fit_start(self) -> None:
        self.watch.device = self.device
        self.watch.last = time.perf_counter()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self._begun != self.step or not self.watch.parts:
            self._begun, self.watch.parts = self.step, {}
        self.watch.lap("data")
        loss = self.loss(batch)
        self.watch.lap("forward")
        part = loss.detach() / self.trainer.accumulate_grad_batches
        self._step_loss = self._step_loss.to(part.device) + part
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def on_after_backward(self) -> None:
        self.watch.lap("backward")

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By the global norm, at the Trainer's value, else at ``optim.clip``; the residual's own
        gradients at ``optim.residual_clip`` where it is given.
        """
        if gradient_clip_algorithm == "value" and gradient_clip_val is not None:
            torch.nn.utils.clip_grad_value_(self.model.parameters(), gradient_clip_val)
            return
        clip = self.config.optim.clip if gradient_clip_val is None else gradient_clip_val
        self.grad_norm = self.clip(clip)

    def clip(self, clip: float) -> Tensor:
        """Clip the gradients to the norm ``clip`` (0: not at all). Returns that of before."""
        return clip_gradients(self.model, clip, self.config.optim.residual_clip)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.model.after_step()
        self.watch.lap("optimizer")
        self.lr = self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"]  # type: ignore[union-attr]
        self.step += 1
        loss = self._step_loss.double()
        self.loss_sum = self.loss_sum.to(loss.device) + loss
        self.recent = torch.cat([self.recent.to(loss.device), loss.reshape(1)])[-WINDOW:]
        self._step_loss = torch.zeros(())

    def add_time(self) -> None:
        """Count the seconds of the step that has ended, once; all ranks agree on them."""
        if self._timed == self.step:
            return
        self._timed = self.step
        self.watch.lap("rest")
        self.seconds += sum(self.watch.parts.values())
        if self.total_steps is None and self.trainer.world_size > 1:
            self.seconds = self.trainer.strategy.broadcast(self.seconds)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.step_ended:
            self.add_time()
            self.watch.last = time.perf_counter()  # what callbacks did is not training time

    def on_validation_epoch_start(self) -> None:
        self._zero_validation()
        data = getattr(self.trainer, "datamodule", None)
        self._val_own = getattr(data, "val_own", math.inf)

    def _zero_validation(self) -> None:
        self._val_sum = torch.zeros(len(self.task.scores) + 1, dtype=torch.float64)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.add_scores(batch_idx, *self.task.score(self.model, batch))

    def add_scores(self, batch_idx: int, rows: int, scores: tuple[float, ...]) -> None:
        """Count the means ``scores`` over ``rows`` examples in the validation, unless batch
        ``batch_idx`` is another process's and is here only so that all have equally many.
        """
        if batch_idx >= self._val_own:
            return
        sums = [*(score * rows for score in scores), rows]
        self._val_sum += torch.tensor(sums, dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        """The mean over the whole validation set; each rank has seen its share of the batches."""
        total = self.trainer.strategy.reduce(self._val_sum.to(self.device), reduce_op="sum")
        dataset = getattr(getattr(self.trainer, "datamodule", None), "dataset", None)
        self.validation = self.task.validation((total[:-1] / total[-1]).tolist(), dataset)
        self.log_dict(self.validation, prog_bar=True, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # a logger is no part of the weights, and may hold a service's key
        checkpoint["config"] = to_yaml(replace(self.config, loggers=()))
        checkpoint["config_hash"] = content_hash(self.config)
        sums = torch.as_tensor(self.all_gather(self.loss_sum.to(self.device)))
        recent = torch.as_tensor(self.all_gather(self.recent.to(self.device)))
        checkpoint["run"] = {
            "step": self.step,
            "seconds": self.seconds,
            # of every rank: each has the loss of its own share of the batches
            "loss_sums": sums.reshape(-1).tolist(),
            "recent": recent.reshape(sums.numel(), -1).tolist(),
            "row_start": list(self.row_start),
            "accumulate": self.trainer.accumulate_grad_batches,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        run = checkpoint["run"]
        self.step, self.seconds = run["step"], run["seconds"]
        self._begun = self._timed = self.step
        self.loss_sum = self._of_rank(run["loss_sums"])
        self.row_start = (run["row_start"][0], run["row_start"][1])
        self.recent = self._of_rank(run["recent"])
        before = run.get("accumulate")  # older ones do not say
        if self._trainer and before not in (None, now := self._trainer.accumulate_grad_batches):
            _recount(checkpoint, before, now)

    def _of_rank(self, values: list[Any]) -> Tensor:
        """This rank's entry; of a checkpoint of another number of ranks the mean over them, which
        is what rows report.
        """
        found = torch.tensor(values, dtype=torch.float64)
        world = self._trainer.world_size if self._trainer else 1  # none in load_from_checkpoint
        return found[self.global_rank] if len(found) == world else found.mean(0)


def _recount(checkpoint: dict[str, Any], before: int, now: int) -> None:
    """Count the batches of a checkpoint, which had ``before`` a step, as ``now`` a step: Lightning
    steps where its count of them divides.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        more = counts["ready"] // before * now - counts["ready"]
        counts.update({name: count + more for name, count in counts.items()})
