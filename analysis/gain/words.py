"""What a gain says in words: its opening sentence and its warnings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from analysis.gain.paired import shared_seeds_p

if TYPE_CHECKING:
    from analysis.gain.estimate import Estimate

FEW_SIZES = 4
PER = {"flops": "FLOP", "seconds": "second", "device_seconds": "device-second", "tokens": "token"}
# factor between paired losses above which a change of unit or evaluation set is likelier than a
# better model
LARGE_STEP = 1.25


def sentence(gain: Estimate, *others: Estimate) -> str:
    """One plain sentence on the gain, and one on why the evidence is thin, where it is. With
    `others`, gains of the same variant on other axes, one sentence on all of them.

    Raises ValueError for others of another variant or baseline.
    """
    if any((o.variant, o.baseline) != (gain.variant, gain.baseline) for o in others):
        raise ValueError("one sentence speaks of one variant and one baseline")
    sizes = f"{len(gain.per_size)} sizes"
    if others:
        said = [
            f"{direction(g)} per {PER.get(g.x, g.x)} ({_times(g)}, {_range(g)})"
            for g in (gain, *others)
        ]
        listed = ", ".join(said[:-1]) + f" and {said[-1]}"
        text = f"{gain.variant}, against {gain.baseline}, is {listed}; {sizes}."
    elif direction(gain) == "not shown to differ":
        text = (
            f"No difference is shown: {gain.variant} behaves like {gain.baseline} given "
            f"{_times(gain)} ({_range(gain)}, {sizes}), which includes 1."
        )
    else:
        text = (
            f"{gain.variant} is {direction(gain)}: it behaves like {gain.baseline} given "
            f"{_times(gain)} ({_range(gain)}, {sizes})."
        )
    thin = _thin(gain)
    return f"{text} The evidence is thin: {' and '.join(thin)}." if thin else text


def direction(gain: Estimate) -> str:
    """``better`` or ``worse``, or ``not shown to differ`` where the interval includes 1."""
    low, high = gain.interval
    return "not shown to differ" if low <= 1 <= high else "better" if gain.gain > 1 else "worse"


def _times(gain: Estimate) -> str:
    return f"{gain.gain:.2f} times the {'compute' if gain.x == 'flops' else gain.x}"


def _range(gain: Estimate) -> str:
    low, high = gain.interval
    return f"{100 * gain.level:g} % interval {low:.2f} to {high:.2f}"


def summary(gain: Estimate, warnings: tuple[str, ...]) -> str:
    """The sentence, then the evidence, then every warning."""
    p, u = gain.parallelism, gain.unpaired
    rows = [
        ("gain", gain.gain, gain.interval, f"paired shift, t with {gain.df:.3g} df"),
        ("  by Fieller", gain.gain, gain.fieller, "the same pairs"),
    ]
    rows += [("  unpaired", u.gain, u.interval, "for comparison")]
    if gain.pooled:
        rows += [("  seeds pooled", gain.pooled.gain, gain.pooled.interval, gain.pooled.method)]
    if o := gain.offset:
        rows += [
            (
                "  with offset",
                o.gain,
                o.interval,
                f"irreducible loss {o.E:.3g} shared{'' if o.E > 1e-9 else ', at its bound'}",
            )
        ]
    lines = [
        f"{name:15}{g:8.4f}  {100 * gain.level:g} % [{low:.4f}, {high:.4f}]  ({note})"
        for name, g, (low, high), note in rows
    ]
    lines.append(
        f"exponent       {gain.alpha:8.5f}  equal in both arms: t = {p.statistic:.2f}, {p.df:.0f} "
        f"df, p = {p.p:.2g}"
    )
    table = gain.per_size.to_string(index=False, float_format="{:.4g}".format)
    return "\n".join(
        [sentence(gain), "", *lines, "", table, "", *(f"warning: {w}" for w in warnings)]
    ).rstrip()


def warnings(gain: Estimate) -> tuple[str, ...]:
    """Everything a reader must know before quoting the gain."""
    found, table = [*gain.cells.warnings, *_thin(gain)], gain.per_size
    if not math.isfinite(gain.fieller[1]):
        why = "the exponent is not identified (it cannot be told from 0), nor is the gain"
        found.append(f"{why}: Fieller's interval is unbounded, the other too narrow")
    if len(outside := table.loc[table["extrapolates"], "size"]):
        where = f"{len(outside)} of {len(table)} sizes ({', '.join(map(str, outside))})"
        found.append(
            f"the gain is extrapolated at {where}: {gain.baseline} was not run at {gain.gain:.3g} "
            f"times their {gain.x}"
        )
    if len(steps := table.loc[np.abs(table["log_ratio"]) > math.log(LARGE_STEP), "size"]):
        what = (
            f"{gain.y} differs by more than a factor {LARGE_STEP} at {', '.join(map(str, steps))}"
        )
        found.append(f"{what}: are the losses comparable (unit, evaluation set)?")
    if gain.cells.crossed and gain.cells.y[0].shape[1] < 3:
        found.append(
            "sizes share two seeds: the interval covers .89, not .95; take three, or a different "
            "seed at each size"
        )
    if (p := shared_seeds_p(gain.cells.y[0] - gain.cells.y[1])) < 0.1:
        found.append(
            f"a seed moves all sizes alike (p = {p:.2g}); the interval has it; it is "
            "narrower with a different seed at each size"
        )
    offset, p = gain.offset, gain.parallelism.p
    if p < 0.05:  # an irreducible loss can feign unequal exponents
        smallest, largest = (gain.at(float(table["x_variant"].iloc[i])).gain for i in (0, -1))
        text = (
            f"the exponents differ (p = {p:.2g}): by separate slopes the gain goes from "
            f"{smallest:.3f} at the smallest {gain.x} to {largest:.3f}"
        )
        if offset and offset.misfit <= gain.separate_slopes.misfit:
            text += (
                f", but one law with irreducible loss {offset.E:.3g} and the gain "
                f"{offset.gain:.3f} everywhere fits no worse: do not read a trend"
            )
        found.append(f"{text}. A learning rate that arms or sizes share does that too")
    if offset and not gain.interval[0] <= offset.gain <= gain.interval[1]:
        what = (
            f"with an irreducible loss shared by both arms the gain is {offset.gain:.3f}, outside "
            "the interval"
        )
        found.append(f"{what}: it depends on the shape of the law")
    return tuple(found)


def _thin(gain: Estimate) -> list[str]:
    thin = [f"only {len(gain.per_size)} sizes"] if len(gain.per_size) < FEW_SIZES else []
    return [*thin, "one seed per size"] if (gain.per_size["pairs"] == 1).all() else thin
