"""The progress bar: loss, tokens/s, FLOP/s, time left."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from attnres_lab.config import RunConfig
from attnres_lab.training.module import LitTransformer


class Progress(pl.Callback):
    """One Rich bar for a run, on standard error; a plain line now and then where that is no
    terminal.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        console = Console(stderr=True)
        self.terminal = console.is_terminal
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bar.add_task(config.run_name, total=1.0, text="", visible=self.terminal)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.terminal:
            self.bar.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(module, LitTransformer)
        if not (trainer.is_global_zero and module.step_ended) or not (
            module.step % self.config.train.log_every == 0 or module.finished
        ):
            return
        rate = module.step * self.config.tokens_per_step / max(module.seconds, 1e-9)
        loss = float(module.recent[-1])  # of all micro-batches; Lightning's is one's share
        text = (
            f"step {module.step}  loss {loss:.3f}  {rate:,.0f} tokens/s  "
            f"{rate * self.config.flops_per_token / 1e9:,.1f} GFLOP/s"
        )
        self.bar.update(self.task, completed=min(module.progress, 1.0), text=text)
        every = 10 * self.config.train.log_every
        if not self.terminal and (module.step % every == 0 or module.finished):
            self.bar.console.print(f"{self.config.run_name}  {text}", highlight=False)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.bar.stop()
