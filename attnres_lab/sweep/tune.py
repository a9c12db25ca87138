"""The section ``tune`` of a sweep YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from attnres_lab.sweep.launchers.base import Strict

SIZE, VARIANT = "size", "variant"


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
