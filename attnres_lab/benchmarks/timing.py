"""Works timed in turn, so that what else a machine does falls on all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

WARM = 2  # rounds that are not counted


def interleave(works: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds that each work says it took, ``repeats`` times, one after the other, every second
    round backwards.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + WARM):
        for name in works if repeat % 2 else reversed(list(works)):
            spent = works[name]()
            if repeat >= WARM:
                times[name].append(spent)
    return times
