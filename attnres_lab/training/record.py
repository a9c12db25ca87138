"""The Recorder: turns training into the run folder's files, and decides when to validate, probe,
save and stop.
"""

from __future__ import annotations

import math
import resource
import signal
import time
from typing import Any

import pytorch_lightning as pl
import torch

from attnres_lab.config import RunConfig
from attnres_lab.data import Corpus
from attnres_lab.model.flops import num_params
from attnres_lab.runs.folder import RunFolder, write_json
from attnres_lab.training.gauges import Gauges, peak_flops
from attnres_lab.training.module import LitTransformer
from attnres_lab.training.probe import Probe


class Recorder(pl.Callback):
    """Writes rows, depth records, checkpoints and the final result of a run; ends it on divergence,
    SIGTERM, Ctrl-C or a ``stop`` file.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, corpus: Corpus) -> None:
        self.folder, self.config, self.corpus = folder, config, corpus
        self.params = num_params(config.model)
        self.state: str = "running"
        self.last: dict[str, float] = {}
        self._signalled = False
        self._logged_at = (0, 0.0)  # step and seconds of the last row
        self._logging = 0.0  # seconds that the last row took
        self._probe: Probe | None = None  # watches the step under way

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, LitTransformer)
        self._logged_at = (module.step, module.seconds)
        module.watch.device = module.device
        self._gauges, self._peak = (
            Gauges(module.device),
            peak_flops(module.device, str(trainer.precision)),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, LitTransformer)
        module.watch.parts = {}
        module.watch.exact = (module.step + 1) % self.config.train.log_every == 0
        t = self.config.train
        due = module.step + 1 == module.total_steps or (
            t.probe_every > 0 and (module.step + 1) % t.probe_every == 0
        )
        # a probe reads whole weights of plain modules
        if due and t.strategy != "fsdp" and not t.compile:
            self._probe = Probe(module.model)
            self._probe.__enter__()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(module, LitTransformer)
        module.watch.lap("rest")
        if self._probe:
            self._probe.__exit__(None, None, None)
        module.seconds += sum(module.watch.parts.values())
        if module.total_steps is None and trainer.world_size > 1:
            # all ranks agree on the schedule
            module.seconds = trainer.strategy.broadcast(module.seconds)
        t = self.config.train
        done = module.finished
        if done or module.step % t.log_every == 0:
            self._log(trainer, module)
            self._logging = time.perf_counter() - module.watch.last
        if self.state == "running":
            if done or (t.val_every and module.step % t.val_every == 0):
                self._validate(trainer, module)
            if self._probe:
                self._record_depth(trainer, module, self._probe)
            stop = self._asked_to_stop(trainer, module)
            if done or stop or (t.checkpoint_every and module.step % t.checkpoint_every == 0):
                trainer.save_checkpoint(self.folder.checkpoint, weights_only=False)
            if stop and not done:
                self.state = stop
        if done or self.state != "running":
            trainer.should_stop = True
        self._probe = None
        module.watch.last = time.perf_counter()  # what was done here is not training time

    def _asked_to_stop(self, trainer: pl.Trainer, module: LitTransformer) -> str | None:
        word = None
        if self._signalled:
            word = "stopped"
        elif module.step % self.config.train.log_every == 0 and self.folder.stop.exists():
            word = "pruned" if self.folder.stop.read_text().strip() == "prune" else "stopped"
        return trainer.strategy.broadcast(word) if trainer.world_size > 1 else word

    def _log(self, trainer: pl.Trainer, module: LitTransformer) -> None:
        """Append a row; a loss that is not finite ends the run as diverged."""
        step, seconds = self._logged_at
        count = module.step - step
        loss = trainer.strategy.reduce(module.loss_sum / max(count, 1), reduce_op="mean")
        per_step = (module.seconds - seconds) / max(count, 1)
        flops_per_second = self.config.tokens_per_step * self.config.flops_per_token / per_step
        row = {
            **self._position(module),
            "train/loss": float(loss),
            "optim/lr": self._lr(module),
            "optim/grad_norm": float(module.grad_norm),
            "perf/step_seconds": per_step,
            "perf/tokens_per_second": self.config.tokens_per_step / per_step,
            "perf/flops_per_second": flops_per_second,
            "peak_memory_bytes": peak_memory(module.device),
            **{f"perf/{part}_seconds": value for part, value in module.watch.parts.items()},
            "perf/logging_seconds": self._logging,
            **module.model.metrics(),
            **self._gauges.sample(),
        }
        if self._peak:
            row["perf/utilization"] = flops_per_second / self._peak / self.config.train.world
        module.loss_sum.zero_()
        self._logged_at = (module.step, module.seconds)
        self._write(trainer, row)
        if not math.isfinite(row["train/loss"]):
            self.state = "diverged"

    def _lr(self, module: LitTransformer) -> float:
        optimizers = module.optimizers(use_pl_optimizer=False)
        first = optimizers[0] if isinstance(optimizers, list) else optimizers
        return float(first.param_groups[0]["lr"])

    def _position(self, module: LitTransformer) -> dict[str, float]:
        tokens = module.step * self.config.tokens_per_step
        return {
            "step": module.step,
            "time": time.time(),
            "tokens": tokens,
            "flops": tokens * self.config.flops_per_token,
            "seconds": module.seconds,
        }

    def _write(self, trainer: pl.Trainer, row: dict[str, float]) -> None:
        self.last.update(row)
        if trainer.is_global_zero:
            self.folder.append_metrics(row)

    @torch.no_grad()
    def _validate(self, trainer: pl.Trainer, module: LitTransformer) -> None:
        """Mean loss over the corpus's fixed validation set; each rank takes every world-th
        batch.
        """
        d = self.config.data
        module.eval()
        total = torch.zeros(2, dtype=torch.float64)
        with trainer.precision_plugin.val_step_context():
            for index, batch in enumerate(
                self.corpus.val_batches(d.seq_len, self.config.train.micro, d.val_tokens)
            ):
                if index % trainer.world_size == trainer.global_rank:
                    tokens = torch.from_numpy(batch).to(module.device)
                    total += torch.tensor(
                        [float(module.loss(tokens)) * len(batch), len(batch)], dtype=torch.float64
                    )
        total = trainer.strategy.reduce(total.to(module.device), reduce_op="sum")
        module.train()
        loss = float(total[0] / total[1])
        self._write(
            trainer,
            {
                **self._position(module),
                "val/loss": loss,
                "val/bpb": loss / math.log(2) / self.corpus.bytes_per_token,
            },
        )
        if not math.isfinite(loss):
            self.state = "diverged"

    def _record_depth(self, trainer: pl.Trainer, module: LitTransformer, probe: Probe) -> None:
        record = probe.record(module.step)
        self._write(trainer, {**self._position(module), **probe.metrics()})
        if trainer.is_global_zero:
            write_json(self.folder.artifacts / "depth" / f"step-{module.step:06d}.json", record)

    def result(self, module: LitTransformer) -> dict[str, float]:
        """Final numbers of the run."""
        keep = {
            key: value
            for key, value in self.last.items()
            if key != "time" and not key.startswith("system/")
        }
        return keep | {
            "flops_6nd": 6 * self.params.active * keep.get("tokens", 0),
            "device_seconds": module.seconds * self.config.train.world,
            "peak_memory_bytes": peak_memory(module.device),
            "params": self.params.non_embedding,
            "params_total": self.params.total,
            "params_active": self.params.active,
        }


def peak_memory(device: torch.device) -> int:
    """Peak bytes: of the device's allocator on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
