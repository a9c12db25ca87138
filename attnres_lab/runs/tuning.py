"""The tuned protocol's arithmetic: which values of a key a cell still has to try, and which one it
is then measured at.

Functions of results alone, so that whoever asks, after whatever interruption, gets the same answer.
Values lie on a grid, ``start * factor**step`` with whole steps. Standard library only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

#: Values that a cell tries at most; an optimum further from the start is reported as an edge.
MOST = 9


Triple = tuple[float, float, float]


class Parabola(NamedTuple):
    """``minimum + curvature * (x - at) ** 2``."""

    at: float
    minimum: float
    curvature: float


@dataclass(frozen=True)
class Choice:
    """The step at which a cell is measured, seldom a whole one, and what it rests on.

    ``vertex``: of the parabola through the lowest loss and its neighbours; ``neighbour``: the
    lowest itself, beside a value that diverged; ``edge``: the lowest itself, at the end of what was
    tried; ``law``: the line through the smaller sizes.
    """

    step: float
    kind: Literal["vertex", "neighbour", "edge", "law"]


def next_steps(losses: Mapping[int, float]) -> tuple[int, ...] | Choice:
    """The whole steps still to be tried, or the choice once there are none.

    Three neighbours about the start, then one more as long as the lowest loss is at an end.
    ``losses`` by step, lower is better; infinite or NaN for a run that diverged or was given up,
    which counts as worse than any. Decides on complete sets only, so the order in which runs end
    plays no part; results at other steps are not looked at.
    """
    low, high = -1, 1
    while True:
        tried = range(low, high + 1)
        if missing := tuple(step for step in tried if step not in losses):
            return missing
        finite = [step for step in tried if math.isfinite(losses[step])]
        # where nothing trained, the values are too high
        best = min(finite, key=lambda step: (losses[step], abs(step))) if finite else low
        if low < best < high:
            some = losses[best - 1], losses[best], losses[best + 1]
            if not all(map(math.isfinite, some)):
                return Choice(best, "neighbour")
            return Choice(vertex((best - 1, best, best + 1), some).at, "vertex")
        if len(tried) == MOST:
            return Choice(best, "edge")
        low, high = (low - 1, high) if best == low else (low, high + 1)


def vertex(x: Triple, y: Triple) -> Parabola:
    """The parabola through three points of rising ``x`` whose middle one is no higher than the
    others, so that its minimum lies no further out than half-way to them; flat: at the middle.
    """
    first = (y[1] - y[0]) / (x[1] - x[0])
    second = (y[2] - y[1]) / (x[2] - x[1])
    curvature = (second - first) / (x[2] - x[0])
    if not 0 < curvature < math.inf:
        return Parabola(x[1], y[1], 0.0)
    at = (x[0] + x[1]) / 2 - first / (2 * curvature)
    return Parabola(at, y[1] - curvature * (x[1] - at) ** 2, curvature)


def along(sizes: Sequence[float], steps: Sequence[float], size: float) -> float:
    """The step at ``size`` on the least-squares line of ``steps`` over log ``sizes``: the law of
    the best value. Raises statistics.StatisticsError below two sizes.
    """
    slope, intercept = statistics.linear_regression([math.log(s) for s in sizes], steps)
    return intercept + slope * math.log(size)


def value_at(start: float, factor: float, step: float) -> float:
    """The value at a step, to six digits, so that no machine's last bit makes another trial."""
    return float(f"{start * factor**step:.6g}")
