"""The dataclass tree of a run: what a run YAML may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from attnres_lab.config.budget import Budget
from attnres_lab.config.lora import LoraConfig
from attnres_lab.config.optim import OptimConfig, check_numbers
from attnres_lab.config.task import LanguageConfig, TaskConfig
from attnres_lab.config.weights import checkpoint_in, weights_digest
from attnres_lab.data.config import DataConfig
from attnres_lab.model import ModelConfig
from attnres_lab.model.flops import Params, residual_params, steps_for
from attnres_lab.pipeline import PipelineConfig


@dataclass(frozen=True)
class TrainConfig:
    """The loop: batch, logging, precision, devices."""

    batch_size: int = 32  # sequences per optimiser step, over all devices
    micro_batch_size: int | None = None  # sequences per device and forward pass; None: all at once
    log_every: int = 10  # steps
    val_every: int | None = None  # steps; 0: at the end only; None: as 0.8 % of FLOPs pay for
    checkpoint_every: int = 200  # steps; 0: at the end only
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU that has it
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp", "pipeline"] = "auto"
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    threads: int = 1  # CPU threads of each process
    probe_every: int = 0  # steps between depth probes; 0: one at the end only

    def __post_init__(self) -> None:
        """Raises ValueError with the key and the remedy."""
        check_numbers(self, "train.")
        for key in ("batch_size", "log_every", "devices", "nodes", "threads"):
            if getattr(self, key) < 1:
                raise ValueError(f"train.{key}: {getattr(self, key)} is not positive")
        for key in ("val_every", "checkpoint_every", "probe_every"):
            if (getattr(self, key) or 0) < 0:
                raise ValueError(
                    f"train.{key}: {getattr(self, key)} is negative; 0: at the end only"
                )
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(
                f"train.micro_batch_size: {self.micro_batch_size} is not positive; leave it out "
                "for a whole batch at once"
            )
        if self.strategy == "pipeline":
            return self._check_pipeline()
        if self.pipeline != PipelineConfig():
            raise ValueError("train.pipeline: is read by train.strategy: pipeline only; set that")
        micro = self.micro_batch_size or 1
        if self.batch_size % (micro * self.world):
            given = f"micro_batch_size {micro} x " if self.micro_batch_size else ""
            raise ValueError(
                f"train.batch_size: {self.batch_size} is not a multiple of {given}{self.world} "
                "devices; change either"
            )

    def _check_pipeline(self) -> None:
        self.pipeline.check(self.world, self.batch_size)
        for key in ("micro_batch_size", "compile"):
            if getattr(self, key):
                raise ValueError(
                    f"train.{key}: a pipeline does not take it; leave it out (its micro-batches "
                    "are train.pipeline.microbatches)"
                )

    @property
    def world(self) -> int:
        """Processes that train together."""
        return self.devices * self.nodes

    @property
    def micro(self) -> int:
        """Sequences per device and forward pass."""
        passes = self.pipeline.count(self.world) if self.strategy == "pipeline" else 1
        return self.micro_batch_size or self.batch_size // (self.replicas * passes)

    @property
    def replicas(self) -> int:
        """Groups of processes that have their own share of a batch each; process r is of group r x
        ``replicas`` // ``world``.
        """
        if self.strategy == "pipeline" and self.pipeline.ranks:
            return self.world // self.pipeline.ranks
        return 1 if self.strategy == "pipeline" else self.world

    @property
    def loaded(self) -> int:
        """Sequences of a batch that a device is given: for one forward pass, or for a pipeline."""
        return self.batch_size // (self.replicas * self.accumulate)

    @property
    def accumulate(self) -> int:
        """Batches per optimiser step on each device."""
        if self.strategy == "pipeline":
            return 1
        return self.batch_size // (self.micro * self.world)


@dataclass(frozen=True)
class RunConfig:
    """A complete training run."""

    name: str = "run"
    seed: int = 0  # trunk weights and the order of the batches
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    budget: Budget = field(default_factory=lambda: Budget(100, "steps"))  # a file must say
    train: TrainConfig = field(default_factory=TrainConfig)
    task: TaskConfig = field(default_factory=LanguageConfig)
    init_from: str | None = None  # the weights to start from: a checkpoint, or the folder of a run
    init_digest: str | None = None  # of those weights; taken from the file where it is left out
    # classes of Lightning's kind by dotted name, or {name: package.Class, key: value}
    callbacks: tuple[str | dict[str, Any], ...] = ()
    loggers: tuple[str | dict[str, Any], ...] = ()  # beside the run folder and its mirror

    def __post_init__(self) -> None:
        """Raises ValueError for a name that is not a plain file name, and for a seed that numpy
        does not take; for a number anywhere in the config that is not finite or too large.
        """
        check_numbers(self)
        for key in ("callbacks", "loggers"):
            for item in getattr(self, key):
                if isinstance(item, dict) and not isinstance(item.get("name"), str):
                    raise ValueError(f"{key}: {item}: no name; write {{name: package.Class, ...}}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: {self.seed} is not a whole number from 0 to 2^32 - 1")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise ValueError(f"name: {self.name!r} may hold letters, digits, '.', '_' and '-' only")
        self.optim.check(self.model.residual.has_queries, self.variant)
        if self.optim.freeze_trunk and not residual_params(self.model):
            raise ValueError(
                f"optim.freeze_trunk: {self.variant} has no parameters beside the trunk; leave it "
                "out, or take another residual connection"
            )
        if self.optim.lora != LoraConfig():
            self.optim.lora.check(self.model, self.train.strategy)
        self.task.check(self.model)
        if self.init_from and not self.init_digest:
            object.__setattr__(self, "init_digest", weights_digest(checkpoint_in(self.init_from)))
        if self.train.strategy == "pipeline":
            self.train.pipeline.check_depth(self.train.world, self.model.num_sublayers)
            if not isinstance(self.task, LanguageConfig):
                raise ValueError(
                    "train.strategy: a pipeline is for language; take ddp or fsdp for images"
                )

    @property
    def variant(self) -> str:
        """Label of the residual connection."""
        return self.model.residual.label

    @property
    def run_name(self) -> str:
        """``block8-d64-L12-s0``."""
        return f"{self.variant}-{self.model.size}-s{self.seed}"

    @property
    def tokens_per_step(self) -> int:
        """Tokens (of images: patches) of one optimiser step, over all devices."""
        return self.train.batch_size * self.task.tokens(self.data.seq_len)

    @property
    def flops_per_token(self) -> float:
        """Exact training FLOPs per token."""
        trunk = self.task.flops_per_token(
            self.model, self.data.seq_len, frozen=self.optim.freezes_trunk
        )
        return trunk + self.optim.lora.flops_per_token(self.model)

    @property
    def params(self) -> Params:
        """Parameters of the network."""
        return self.task.params(self.model)

    @property
    def steps(self) -> int | None:
        """Optimiser steps that spend the budget, to the nearest; None for a budget in seconds."""
        value, unit = self.budget.value, self.budget.unit
        if unit == "seconds":
            return None
        if unit == "steps":
            return int(value)
        if unit == "flops":
            return steps_for(value, self.flops_per_token * self.tokens_per_step)
        if unit == "tokens_per_param":
            # of the trunk: all variants of a size see the same tokens
            value *= self.params.non_embedding - residual_params(self.model)
        return steps_for(value, self.tokens_per_step)
