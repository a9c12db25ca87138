"""The LightningModule, and the loader whose batches are a pure function of (seed, step)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from attnres_lab.config import RunConfig, content_hash, to_yaml
from attnres_lab.data import Corpus
from attnres_lab.model import Transformer
from attnres_lab.training.optim import lr_factor, make_optimizers, set_lr


class Stopwatch:
    """Seconds by part of the step; it waits for the device only while ``exact`` (a logged step),
    else it would slow training.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.exact, self.parts, self.last = (
            device,
            False,
            dict[str, float](),
            time.perf_counter(),
        )

    def lap(self, part: str) -> None:
        """Add the time since the last lap to ``part``."""
        if self.exact and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now


class LitTransformer(pl.LightningModule):
    """A Transformer with its optimisation: one ``training_step`` is one optimiser step, over all
    its micro-batches.

    Optimisation is manual because Muon needs a second optimiser beside it, and because a step is
    then the same thing for accumulation, schedules, budgets and checkpoints.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.model = Transformer(config.model, config.seed)
        self.total_steps = config.steps
        self.step = 0
        self.seconds = 0.0  # training time so far, without validation, probes and checkpoints
        self.loss_sum = torch.zeros((), dtype=torch.float64)  # since the last logged row
        self.grad_norm = torch.zeros(())
        self.watch = Stopwatch(torch.device("cpu"))

    def configure_model(self) -> None:
        if self.config.train.strategy == "fsdp":
            from torch.distributed.fsdp import fully_shard

            mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
            for sublayer in self.model.sublayers:
                fully_shard(sublayer, mesh=mesh)
            fully_shard(self.model, mesh=mesh)
        if self.config.train.compile:
            self.model.compile()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return make_optimizers(self.model, self.config.optim)

    @property
    def progress(self) -> float:
        """Fraction of the budget spent when the next step is done."""
        if self.total_steps:
            return (self.step + 1) / self.total_steps
        return self.seconds / (self.config.budget.seconds or 1.0)

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        if self.total_steps:
            return self.step >= self.total_steps
        return self.seconds >= (self.config.budget.seconds or 0.0)

    def loss(self, tokens_BT1: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, in fp32."""
        logits_BTV = self.model(tokens_BT1[:, :-1])
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT1[:, 1:].flatten())

    def training_step(self, batch_BT1: Tensor, batch_idx: int) -> Tensor:
        self.watch.lap("data")
        optimizers = self.optimizers(use_pl_optimizer=False)
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        set_lr(optimizers, lr_factor(self.config.optim, min(self.progress, 1.0)))
        parts: tuple[Tensor, ...] = torch.split(batch_BT1, self.config.train.micro)
        total = torch.zeros((), device=self.device)
        for index, part in enumerate(parts):
            with nullcontext() if index + 1 == len(parts) else self._no_sync():
                loss = self.loss(part) / len(parts)
                self.watch.lap("forward")
                self.manual_backward(loss)
                self.watch.lap("backward")
            total += loss.detach()
        clip = self.config.optim.clip or float("inf")
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.model.after_step()
        self.watch.lap("optimizer")
        self.step += 1
        self.loss_sum = self.loss_sum.to(total.device) + total.double()
        return total

    def _no_sync(self) -> Any:
        """Gradients of all but the last micro-batch stay on their rank."""
        sync = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        return sync()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = to_yaml(self.config)
        checkpoint["config_hash"] = content_hash(self.config)
        checkpoint["run"] = {
            "step": self.step,
            "seconds": self.seconds,
            "loss_sum": float(self.loss_sum),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        run = checkpoint["run"]
        self.step, self.seconds = run["step"], run["seconds"]
        self.loss_sum = torch.tensor(run["loss_sum"], dtype=torch.float64)


class StepLoader:
    """Batches [rows of this rank, T + 1] from the module's current step on: an interrupted run
    continues with the very batch it owes.
    """

    def __init__(self, module: LitTransformer, corpus: Corpus, rank: int, world: int) -> None:
        self.module, self.corpus, self.rank, self.world = module, corpus, rank, world

    def __iter__(self) -> Iterator[Tensor]:
        c = self.module.config
        step = self.module.step
        while self.module.total_steps is None or step < self.module.total_steps:
            batch = self.corpus.train_batch(
                c.seed, step, c.train.batch_size, c.data.seq_len, slice(self.rank, None, self.world)
            )
            yield torch.from_numpy(batch)
            step += 1
