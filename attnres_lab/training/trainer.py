"""The Lightning trainer of a run: devices, precision, strategy, and nothing that it would do by
itself.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from attnres_lab.config import RunConfig, TrainConfig
from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder
from attnres_lab.training.checkpoint import AtomicCheckpoint
from attnres_lab.training.pipeline import PipelineStrategy
from attnres_lab.training.sharded import ShardedStrategy

PROCESSES = 4  # ranks for each core that may be asked for


def accelerator(t: TrainConfig) -> str:
    """``cuda`` or ``cpu``. Raises UserError for devices that are not there."""
    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    if t.device == "cuda" and not gpus:
        raise UserError(
            "train.device: cuda was asked for, but torch finds no GPU here; use auto or cpu"
        )
    cuda = t.device == "cuda" or (t.device == "auto" and gpus > 0)
    if t.devices > (most := gpus if cuda else PROCESSES * cores):
        raise UserError(
            f"train.devices: {t.devices}, but this machine has {gpus} GPUs and {cores} cores; "
            f"give at most {most}"
        )
    return "cuda" if cuda else "cpu"


def in_bf16(t: TrainConfig, device: str) -> bool:
    """Whether products are bf16 on a ``device``, ``cuda`` or ``cpu``: where asked for, and by
    default on a GPU that has it and does not emulate it.
    """
    if t.precision == "auto":
        return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return t.precision == "bf16"


def make_trainer(
    config: RunConfig, files: RunFolder, callbacks: list[pl.Callback], loggers: list[Any]
) -> pl.Trainer:
    """Lightning's, for the devices, precision and strategy of the config, with checkpoints that are
    written whole or not at all. Raises as ``accelerator``.
    """
    t = config.train
    device = accelerator(t)
    strategy: Any = "auto"
    # inside a Slurm job too: ``ranks`` says who is who, not srun
    plugins: list[Any] = [AtomicCheckpoint(files.checkpoint), LightningEnvironment()]
    if t.strategy == "fsdp":
        strategy = ShardedStrategy(
            data_parallel_size=t.world, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    elif t.strategy == "pipeline":
        strategy = PipelineStrategy()
    elif t.world > 1:
        strategy = DDPStrategy()
    with quiet():
        return pl.Trainer(
            accelerator="cpu" if device == "cpu" else "gpu",
            devices=t.devices,
            num_nodes=t.nodes,
            strategy=strategy,
            precision="bf16-mixed" if in_bf16(t, device) else "32-true",
            max_epochs=1,
            callbacks=callbacks,
            plugins=plugins,
            logger=loggers or False,
            accumulate_grad_batches=t.accumulate,
            check_val_every_n_epoch=2,  # never: there is one epoch, and Validation has the schedule
            num_sanity_val_steps=0,
            log_every_n_steps=t.log_every,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=str(files.path),
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's advice on loggers, workers and hardware does not fit a loader that is index
    arithmetic.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning.*")
        warnings.filterwarnings("ignore", module="lightning_fabric.*")
        yield
