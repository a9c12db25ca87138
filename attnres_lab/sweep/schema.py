"""The sweep YAML as frozen dataclasses, section by section, then the whole. Imports neither torch
nor Optuna.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field

from attnres_lab.sweep.launchers import DEFAULT, REGISTRY, LauncherConfig
from attnres_lab.sweep.launchers.base import Count, Positive, Strict
from attnres_lab.sweep.process import TRAIN

if TYPE_CHECKING:
    from attnres_lab.config import TrainConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
SIZE, VARIANT = "size", "variant"
if TYPE_CHECKING:
    AnyLauncher = LauncherConfig
else:
    AnyLauncher = Annotated[
        Union[tuple(launcher.Config for launcher in REGISTRY.values())],  # noqa: UP007
        Field(discriminator="name"),
    ]


@dataclass(frozen=True)
class Objective(Strict):
    """A number of ``result.json`` and which way is better."""

    metric: str = "val/loss"
    direction: Literal["minimize", "maximize"] = "minimize"


@dataclass(frozen=True)
class Sampler(Strict):
    """Who proposes points: ``grid`` runs them all; else an Optuna sampler (random, tpe, gp, qmc,
    cmaes, nsgaii, ...) with its keyword options.
    """

    name: str = "grid"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pruner(Strict):
    """Who ends bad trials early: an Optuna pruner with its options, on training steps (median,
    hyperband, ...) or over seeds (wilcoxon).
    """

    name: str
    metric: str = "val/loss"
    """A metric of the logged rows."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Retry(Strict):
    """How often a trial is tried again within one ``sweep run``; a later run tries failed trials
    anyway.
    """

    infrastructure: Annotated[int, Field(ge=0)] = 3
    """Also trials that were killed."""
    out_of_memory: Annotated[int, Field(ge=0)] = 0
    backoff: Annotated[float, Field(ge=0)] = 1.0
    """Seconds before the first retry; doubled each time."""


@dataclass(frozen=True)
class Stop(Strict):
    """When to start no more trials; what is running ends by itself."""

    trials: Count | None = None
    device_hours: Positive | None = None
    flops: Positive | None = None
    no_improvement: Count | None = None
    """Finished points in a row that were no better than the best."""


@dataclass(frozen=True)
class Evaluation(Strict):
    """Benchmarks of each finished trial, as a part of it; their scores may be objectives."""

    tasks: Annotated[list[str], Field(min_length=1)]
    """nano, or names of lm_eval's tasks that run no programs."""
    limit: Count | None = None
    """The first so many questions of each task."""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question; by default what the task says."""
    data: str | None = None
    """A folder with copies of the hub's data sets."""
    batch_size: Count = 16


@dataclass(frozen=True)
class Tune(Strict):
    """A key whose best value is found at each cell, on seeds of its own, before the cell is
    measured there.
    """

    key: str
    start: Annotated[float, Field(gt=0)] | None = None
    """The middle of the first three values tried."""
    factor: Annotated[float, Field(gt=1)] = 2.0
    """From one value tried to the next."""
    per: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: [SIZE, VARIANT])
    """What makes a cell: size, variant, axes of the space."""
    seeds: Annotated[int, Field(ge=1, le=50)] = 1
    """Tuning runs of each point and value."""
    smallest: Annotated[
        str | None, Field(alias="from", pattern=r"^([2-9]|[1-9][0-9]+) smallest sizes$")
    ] = None
    """Tune at the smallest sizes only (3 smallest sizes), and take the values of the others from
    the line through them, log value by log parameters.
    """
    values: dict[str, Any] | None = None
    """Values known already, by cell, nested in the order of ``per``; then nothing is tuned."""

    @property
    def sizes(self) -> int | None:
        """At how many of the smallest sizes to tune; None: at all."""
        return int(self.smallest.split()[0]) if self.smallest else None

    def refusal(self, *, adaptive: bool, objectives: int) -> tuple[str, str] | None:
        """The key and what is wrong with it, where a sweep cannot be tuned so."""
        if adaptive:
            return "sampler.name", "tune takes the place of a search: the sampler must be grid"
        if objectives > 1:
            return "objective", "tune needs one objective"
        if (self.start is None) == (self.values is None):
            return "tune", "give start, the value to begin with, or values, those known already"
        if self.smallest and self.values is not None:
            return "tune.from", "with values nothing is tuned; leave one out"
        if self.smallest and SIZE not in self.per:
            return "tune.per", "with from, size must be among them"
        return None


@dataclass(frozen=True)
class Resources(Strict):
    """What one trial gets."""

    devices: Annotated[float, Field(ge=0)] = 1
    """Accelerators on each node, where the machine has any; below 1 a share of one, 0.25 for four
    trials on each; 0: CPU only.
    """
    nodes: Count = 1
    """Machines of a cluster that train a trial together."""
    node_timeout: Positive = 600
    """Seconds that the nodes of a trial wait for each other."""
    device: str | None = None
    """What a cluster's trials run on, as the environment.json of a run there says; the plan takes
    the speeds measured on it.
    """
    threads: Count = 1
    memory_gb: Positive | None = None
    """Refuse trials that need more; by default the device's memory."""
    time_limit: Positive | None = None
    """Hours; the trial then writes a checkpoint and goes on in a new attempt."""

    def __post_init__(self) -> None:
        if self.devices >= 1 and self.devices == int(self.devices):
            object.__setattr__(self, "devices", int(self.devices))

    @property
    def shared(self) -> int:
        """Trials on each device."""
        return math.floor(1 / self.devices + 1e-9) if 0 < self.devices < 1 else 1

    @property
    def whole(self) -> int:
        """Devices that a trial has a hand in on each node."""
        return math.ceil(self.devices)

    @property
    def ranks(self) -> int:
        """Processes on each node."""
        return max(1, self.whole)

    @property
    def leased(self) -> float:
        """Devices, or on a CPU processes, that a trial takes up on all nodes together."""
        return (self.devices or 1) * self.nodes

    def refusal(self) -> str:
        """What is wrong with it, after its key; empty where nothing is."""
        if self.devices > 1 and self.devices != int(self.devices):
            return (
                f"resources.devices: {self.devices:g} is neither a share of one device nor a "
                "number of whole ones; give one below 1, or a whole number"
            )
        if self.nodes > 1 and 0 < self.devices < 1:
            return (
                f"resources.nodes: {self.nodes} nodes with a share of a device each; give a whole "
                "number of resources.devices, or nodes: 1"
            )
        return ""

    def misfit(self, train: TrainConfig) -> str:
        """Why a run does not fit in, after the key; empty where it does."""
        if 0 < self.devices < 1 and (train.world > 1 or train.strategy != "auto"):
            return (
                f"resources.devices: {self.devices:g} of a device is for one process, and the run "
                f"has train.strategy: {train.strategy} over {train.world}; give whole devices, or "
                "leave out train.strategy, train.devices and train.nodes"
            )
        if self.nodes > 1 and (train.nodes, train.devices) != (self.nodes, self.ranks):
            return (
                f"resources.nodes: {self.nodes} nodes of {self.ranks} processes each, but the run "
                f"has train.nodes = {train.nodes}, train.devices = {train.devices}; set overrides: "
                f"{{train.nodes: {self.nodes}, train.devices: {self.ranks}}}"
            )
        if self.nodes == 1 and train.nodes > 1:
            return f"resources.nodes: the run wants train.nodes = {train.nodes}; give as many"
        if train.world > self.ranks * self.nodes:
            return f"resources.devices: the run wants train.devices = {train.devices}"
        return ""


ONE_DEVICE = Resources()


@dataclass(frozen=True)
class SweepSpec(Strict):
    """A base run, a space, an objective."""

    name: Name
    base: str
    """The run YAML, relative to this file."""
    space: dict[str, Any]
    question: str = ""
    """What the sweep is to answer; opens the plan and the report."""
    verdict: bool = True
    """Whether it trains enough for one; false: its report compares no variants."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted keys laid over the base."""
    objective: Objective | Annotated[list[Objective], Field(min_length=1)] = Objective()
    sampler: Sampler = Sampler()
    pruner: Pruner | None = None
    tune: Tune | None = None
    trials: Count | None = None
    """Points to propose; not for grids, which have their own number."""
    known: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Tables of finished trials, as attnres sweep export writes them, beside or relative to this
    file: what is in there is not run again.
    """
    order: Literal["largest", "smallest"] = "largest"
    """Which trials start first: the largest, so that no device idles at the end, or the smallest,
    so that a sitting that ends early leaves whole cells.
    """
    launcher: AnyLauncher = DEFAULT
    resources: Resources = ONE_DEVICE
    retry: Retry = Retry()
    stop: Stop = Stop()
    eval: Evaluation | None = None
    storage: str | None = None
    """An Optuna RDB URL; by default a journal file in the sweep's folder."""
    function: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] = TRAIN
    """What runs a trial: module:function, called with (config, folder)."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """One or several."""
        return tuple(self.objective) if isinstance(self.objective, list) else (self.objective,)

    @property
    def tables(self) -> tuple[str, ...]:
        """What is under ``known``."""
        return (self.known,) if isinstance(self.known, str) else tuple(self.known or ())

    @property
    def adaptive(self) -> bool:
        """Whether points are proposed, not enumerated."""
        return self.sampler.name != "grid"
