"""The section ``resources`` of a sweep YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from attnres_lab.sweep.launchers.base import Count, Positive, Strict

if TYPE_CHECKING:
    from attnres_lab.config import TrainConfig


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
