"""What tuning did in a sweep under ``tune``: the bowls, the values chosen, what it cost, and what
one shared value would have said.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis import plots
from analysis.gain.gain import compute_equivalent_gain
from analysis.report.evidence import BASELINE, LOSS, Evidence
from analysis.report.page import Page
from analysis.tables import markdown
from analysis.tuning import Bowls, bowls, spread_of_runs

COSTS = {"flops": ("FLOP", 1.0), "device_seconds": ("device-hours", 3600.0)}
KINDS = {
    "neighbour": "the lowest itself, beside a value that diverged",
    "edge": "on the edge of what was tried",
    "none": "every value diverged",
}


def _tuning(evidence: Evidence, page: Page) -> None:
    """Nothing where no cell has a value of its own."""
    tuning = evidence.tuning
    key = evidence.rate if tuning.empty else _key(evidence, tuning)
    if not key or key not in evidence.done or not (tuning.empty or LOSS in tuning):
        return
    of_cell = [factor for factor in evidence.factors if factor != key]
    measured = _by_cell(evidence.done, of_cell)
    if tuning.empty or evidence.goal != LOSS:
        how = "Given in the sweep's file." if tuning.empty else f"Chosen by {evidence.goal}."
        page.add(f"## {key} of each cell", how, markdown(_chosen(key, measured)))
        return
    tuning = _by_cell(tuning, of_cell)
    sigma = spread_of_runs(measured, ["variant", "size", key], LOSS)
    found = bowls(tuning, key, sigma=sigma)
    note = (
        f"Each cell has its own {key}: the vertex of the parabola through the lowest loss and its "
        "neighbours, from runs on seeds that measure nothing else. The gains above rest on the "
        "measuring runs alone."
    )
    if law := [s for s in measured["size"].unique() if s not in set(tuning["size"])]:
        note += f" At {', '.join(law)} it lies on the line of log value by log parameters."
    page.add(f"## Tuned {key}", note, markdown(_chosen(key, measured, found)))
    odd = found.rows[found.rows["kind"].isin(list(KINDS))]
    if len(odd):
        page.bullets(
            f"{row['variant']} {row['size']}: {KINDS[str(row['kind'])]}"
            for row in odd.to_dict("records")
        )
    _figure(found, tuning, page)
    _debt(found, tuning, measured, page)
    if not of_cell:
        _shared(evidence, tuning, key, page)


def _by_cell(runs: pd.DataFrame, factors: list[str]) -> pd.DataFrame:
    """With the value of each factor beside the size, for a cell has a value of its own in each."""
    names = runs["size"].astype(str)
    for factor in factors:
        names = names + f" {factor}=" + runs[factor].astype(str)
    return runs.assign(size=names)


def _key(evidence: Evidence, tuning: pd.DataFrame) -> str:
    """What the sweep's file tunes, else the one key in which the tuning runs of a cell differ."""
    keys = [] if evidence.rate else replace(evidence, runs=tuning).tuned
    return evidence.rate or (keys[0] if len(keys) == 1 else "")


def _chosen(key: str, measured: pd.DataFrame, found: Bowls | None = None) -> pd.DataFrame:
    """The value at which each cell was measured: a row per size, a column per variant; with its
    error in per cent where the noise is known.
    """
    values: dict[Any, float] = (
        measured.groupby(["size", "variant"], sort=False)[key].first().to_dict()
    )
    errors = found.rows.set_index(["size", "variant"])["error"].to_dict() if found else {}
    rows: dict[Any, dict[str, str]] = {}
    for (size, variant), value in values.items():
        error = errors.get((size, variant), np.nan)
        known = f" ± {100 * np.expm1(error * np.log(2)):.0f} %" if np.isfinite(error) else ""
        rows.setdefault(size, {"size": str(size)})[str(variant)] = f"{value:.3g}{known}"
    table = pd.DataFrame(list(rows.values())).fillna("not measured yet")
    return table[["size", *sorted(set(table) - {"size"}, key=lambda v: (v != BASELINE, v))]]


def _figure(found: Bowls, tuning: pd.DataFrame, page: Page) -> None:
    cells = (
        tuning.groupby(["variant", "size", found.key], sort=False)[LOSS].mean().reset_index()
    ).rename(columns={LOSS: "loss"})
    variants = list(dict.fromkeys(cells["variant"]))
    panels, axes = {}, []
    for variant in variants:
        own = found.rows[found.rows["variant"] == variant]
        panels[f"bowls_{variant}"], (ax,) = plots.new_axes()
        axes.append(ax)
        mine = cells[cells["variant"] == variant]
        plots.tuning_bowls(ax, mine, own, found.key, str(variant))
    for which in "xy":
        plots.same_limits(axes, which)
    caption = f"Loss of the tuning runs by {found.key}, size by size; stars: the minima."
    page.figure(panels, caption)


def _debt(found: Bowls, tuning: pd.DataFrame, measured: pd.DataFrame, page: Page) -> None:
    """Runs and compute spent on tuning, and the loss that the error of a value still costs."""
    rows = []
    for name, runs in (("tuning", tuning), ("measuring", measured)):
        row: dict[str, Any] = {"": name, "runs": len(runs)}
        row |= {
            head: runs[column].sum() / unit
            for column, (head, unit) in COSTS.items()
            if column in runs
        }
        rows.append(row)
    debt = found.rows["debt"].median()
    words = (
        f"What the error of a value costs a cell: {debt:.2g} nats (median), from a run's standard "
        f"deviation of {found.sigma:.2g} nats over the measuring seeds."
        if np.isfinite(debt)
        else "What the error of a value costs is not known: no cell was measured on several seeds."
    )
    page.add("### What tuning cost", markdown(pd.DataFrame(rows)), words)


def _shared(evidence: Evidence, tuning: pd.DataFrame, key: str, page: Page) -> None:
    """The gain that the tuning runs show at each value that every cell has tried."""
    if BASELINE not in set(tuning["variant"]):
        return
    cells = tuning.groupby(["variant", "size"]).ngroups
    rows = []
    for value, runs in tuning.groupby(key):
        if runs.groupby(["variant", "size"]).ngroups == cells:
            row = {key: f"{value:g}, shared"}
            rows.append(row | {v: _gain(runs, v) for v in evidence.variants})
    title = "### The gain per FLOP under one shared value"
    if not rows:
        page.add(title, f"Not known: no {key} was tried in every cell.")
        return
    note = (
        "For comparison only: what the same sweep would have said at one value for all, from the "
        "tuning runs. A shared value is above one arm's optimum and below another's, so it decides "
        "such a verdict. The result, each cell at its own value, is in the table of gains above."
    )
    page.add(title, note, markdown(pd.DataFrame(rows)))


def _gain(runs: pd.DataFrame, variant: str) -> str:
    try:
        return _in_words(compute_equivalent_gain(runs, variant, BASELINE, x="flops"))
    except (ValueError, KeyError):
        return "none"


def _in_words(gain: Any) -> str:
    return f"{gain.gain:.2f} ({gain.interval[0]:.2f} to {gain.interval[1]:.2f})"


TUNING = (_tuning,)
