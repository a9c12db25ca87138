"""Which stage runs where, and what is new at each hop: plain numbers and names, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """``ranks`` x ``virtual`` stages of equally many sublayers; stage i is on rank i mod
    ``ranks``.
    """

    ranks: int
    virtual: int
    sublayers: int

    @property
    def stages(self) -> int:
        return self.ranks * self.virtual

    @property
    def cuts(self) -> tuple[int, ...]:
        """How many sublayers have run at each hop."""
        return tuple(self.span(stage).stop for stage in range(self.stages - 1))

    def span(self, stage: int) -> range:
        """Sublayers of a stage."""
        size = self.sublayers // self.stages
        return range(stage * size, (stage + 1) * size)

    def of(self, rank: int) -> range:
        """Stages of a rank."""
        return range(rank, self.stages, self.ranks)


@dataclass(frozen=True)
class Traffic:
    """Names that a stage takes in. ``received`` come over the hop before it; ``held`` its rank has
    made or been sent at an earlier stage.
    """

    received: tuple[str, ...]
    held: tuple[str, ...]


def traffic(layout: Layout, carried: Sequence[Sequence[str]], caching: bool) -> list[Traffic]:
    """Of each stage. ``carried``: the names that the state has at each hop."""
    known: list[set[str]] = [set() for _ in range(layout.ranks)]
    stages = [Traffic((), ())]
    for stage, names in enumerate(carried, 1):
        before, here = (stage - 1) % layout.ranks, stage % layout.ranks
        known[before].update(names)
        held = known[here] if caching else set()
        stages.append(
            Traffic(tuple(n for n in names if n not in held), tuple(n for n in names if n in held))
        )
        known[here].update(names)
    return stages


def units(stages: Sequence[Traffic]) -> int:
    """Tensors sent over all hops in one direction."""
    return sum(len(stage.received) for stage in stages)
