"""How much of a sweep is done, and when the rest will be: by what its own trials took, and, before
the first of them ended, by what was measured earlier. Imports neither torch nor MLflow.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from attnres_lab.runs.files import number
from attnres_lab.runs.progress import Progress
from attnres_lab.runs.sweep import Entry

#: A running trial says something about time from this share of its training on.
TELLING = 0.1
#: Seconds per FLOP by parameters, as a power, as long as one size alone has been seen.
USUAL = -0.5


@dataclass(frozen=True)
class Outlook:
    """What is known besides the trials' folders: seconds of training by hash, where all were
    measured (else none), and trials that are still to be planned, with how many of each.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    coming: Sequence[tuple[Entry, float]] = ()


NOTHING = Outlook()


@dataclass(frozen=True)
class Forecast:
    """The share of the whole sweep's time that is done, from 0 to 1, and the seconds left; None
    where nothing is known of time yet, and the share is that of the FLOPs.
    """

    share: float
    seconds_left: float | None


@dataclass(frozen=True)
class _Seen:
    """What a trial took by the clock, in seconds, of that ``outside`` its training, and what was
    expected: ``base``, its seconds or its FLOPs.
    """

    variant: str
    params: int
    base: float
    wall: float
    outside: float


def forecast(
    trials: Sequence[Progress],
    slots: int,
    outlook: Outlook = NOTHING,
    now: float | None = None,
    *,
    smallest: bool = False,
) -> Forecast:
    """Of a sweep of which ``slots`` trials run at a time, the largest first, or the smallest."""
    now = time.time() if now is None else now
    coming = [entry for entry, _ in outlook.coming]
    timed = bool(outlook.seconds) and all(
        e.hash in outlook.seconds for e in [*(t.entry for t in trials), *coming]
    )

    def base(entry: Entry) -> float:
        return outlook.seconds[entry.hash] if timed else entry.flops or 1.0

    seen = [s for t in trials if t.status.state == "finished" and (s := _seen(t, base, _took(t)))]
    if not seen:
        seen = [s for t in trials if (s := _seen(t, base, _under_way(t)))]
    known = bool(seen) or timed

    def expected(entry: Entry) -> float:
        own = _Seen(entry.variant, entry.num_params, base(entry), 0.0, 0.0)
        return _expected(own, seen, USUAL * (not timed)) if seen else own.base

    done = total = 0.0
    running: list[float] = []
    waiting: list[tuple[float, float]] = []
    for t in trials:
        whole = _took(t) if known and t.done else None
        whole = whole or expected(t.entry)
        rest = 0.0 if t.done else whole * (1 - _share(t))
        done, total = done + whole - rest, total + whole
        if t.label == "running":
            running.append(rest if _share(t) else _unbegun(t, whole, now))
        elif not t.done:
            waiting.append((t.entry.flops or 0.0, rest))
    later = sum(count * expected(entry) for entry, count in outlook.coming)
    order = [rest for _, rest in sorted(waiting, reverse=not smallest)]
    left = schedule(order, slots, running) + later / max(1, slots)
    share = done / (total + later) if total + later else 1.0
    return Forecast(share, left if known or not (order or running or later) else None)


def schedule(seconds: Iterable[float], slots: int, running: Sequence[float] = ()) -> float:
    """When the last trial ends if ``slots`` run at a time, those in ``running`` first, the others
    in their order.
    """
    ends = [*running, *[0.0] * max(0, max(1, slots) - len(running))]
    heapq.heapify(ends)
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def _took(t: Progress) -> float:
    """Seconds by the clock of a trial that has ended, its start and its validation included; 0
    where they are not known. Of a resumed trial the clock has the last attempt alone.
    """
    clock = t.status.updated - t.begun if t.begun else 0.0
    return max(0.0, clock, number(t.row.get("seconds")) or 0.0)


def _share(t: Progress) -> float:
    """How much of its training a trial has behind it."""
    spent = number(t.row.get("flops")) or 0.0
    return min(1.0, spent / t.entry.flops) if t.entry.flops and math.isfinite(spent) else 0.0


def _under_way(t: Progress) -> float:
    """What a running trial will take, by the share that it has done in its training time."""
    share, spent = _share(t), number(t.row.get("seconds")) or 0.0
    if t.label != "running" or share < TELLING or not spent:
        return 0.0
    return spent / share


def _unbegun(t: Progress, whole: float, now: float) -> float:
    """What is left of a running trial that has shown no step yet."""
    return max(whole - max(0.0, now - t.begun), 0.05 * whole) if t.begun else whole


def _seen(t: Progress, base: Callable[[Entry], float], took: float) -> _Seen | None:
    e, trained = t.entry, number(t.row.get("seconds")) or 0.0
    outside = max(0.0, took - trained) if t.done and trained else 0.0
    return _Seen(e.variant, e.num_params, base(e), took, outside) if took > 0 else None


def _expected(of: _Seen, seen: Sequence[_Seen], usual: float) -> float:
    """What a trial will take by the clock: what its likes took; else along the line through the
    sizes of its variant, or as long as that ran at one size alone along another variant's, through
    its own there.
    """
    kinds = {name: _medians(s for s in seen if s.variant == name) for name in _variants(seen)}
    own = kinds.get(of.variant, [])
    for one in own:
        if one.params == of.params and math.isclose(one.base, of.base, rel_tol=0.01):
            return one.wall
    shape = own if len(own) > 1 else max(kinds.values(), key=len)
    found = _along(of, shape, usual)
    if own and shape is not own:
        found *= own[0].wall / _along(own[0], shape, usual)
    return found


def _variants(seen: Sequence[_Seen]) -> list[str]:
    return list(dict.fromkeys(s.variant for s in seen))


def _medians(seen: Iterable[_Seen]) -> list[_Seen]:
    """One for each size and budget of a variant."""
    groups: dict[tuple[int, float], list[_Seen]] = {}
    for s in seen:
        groups.setdefault((s.params, s.base), []).append(s)
    return [
        replace(some[0], wall=median(s.wall for s in some), outside=median(s.outside for s in some))
        for some in groups.values()
    ]


def _along(of: _Seen, shape: Sequence[_Seen], usual: float) -> float:
    """A constant and a part in proportion to what was expected, through the nearest two."""
    first, *other = sorted(shape, key=lambda s: abs(math.log(s.base / of.base)))[:2]
    if not other or math.isclose(other[0].base, first.base, rel_tol=0.01):
        trained = (first.wall - first.outside) * of.base / first.base
        return first.outside + trained * float((of.params / first.params) ** usual)
    slope = (other[0].wall - first.wall) / (other[0].base - first.base)
    slope = min(max(slope, 0.0), first.wall / first.base)  # neither part is below nothing
    return first.wall + slope * (of.base - first.base)
