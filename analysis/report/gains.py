"""Compute-equivalent gains of a report: the table, and the figures that show what it says; the
paper's beside ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import paper, plots
from analysis.fits.fit import fit
from analysis.fits.laws import POWER_LAW
from analysis.gain.gain import Gain, compute_equivalent_gain
from analysis.report.evidence import BASELINE, LOSS, Evidence
from analysis.report.page import Page
from analysis.report.summaries import interval_text
from analysis.tables import markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _gains(evidence: Evidence, page: Page) -> None:
    """Gains by variant and x axis; loss against compute, ours beside the paper's Table 2; gain at
    each size, and by compute.
    """
    if not (gains := evidence.gains_per("flops")) or not evidence.judged:
        return
    asked = (
        "How much compute is a variant worth? A gain of 1.2 per FLOP says that the baseline "
        "reaches its loss with 1.2 times the FLOP."
    )
    found = [gain for variant in gains for gain in evidence.gains[variant].values()]
    rows = [_row(gain) for gain in found if isinstance(gain, Gain)]
    page.add("## Compute-equivalent gain", asked, markdown(pd.DataFrame(rows)))
    runs = evidence.comparable if evidence.isoflop else evidence.chosen
    published = paper.table_2().query("variant != 'mhc-lite'")
    theirs = {v: compute_equivalent_gain(published, v) for v in ("block", "full")}
    caption = (
        "Loss against compute. A power law with its 95 % band is fitted to the baseline; a "
        "variant's line is that law at so many times the compute as the gain in the legend, its "
        "band the gain's 95 % interval. Each arrow goes from a variant's line at its largest runs "
        "to the baseline's line, and is as long as the gain."
    )
    panels = {
        "loss": _loss(runs, gains, "this sweep"),
        "loss_paper": _loss(published, theirs, "the paper's Table 2 (C = 6ND, active parameters)"),
    }
    page.figure(panels, caption)
    page.figure(
        {"gain_per_size": _per_size(gains)},
        "Gain at each size with the common exponent, and over all sizes with its 95 % interval.",
    )
    caption = (
        "Gain by compute from separate slopes: a trend here is noise unless equal exponents are "
        "rejected (table above)."
    )
    page.figure({"gain_by_compute": _by_compute(gains)}, caption)


def _row(gain: Gain) -> dict[str, Any]:
    row = {
        "variant": gain.variant,
        "per": gain.x,
        "gain": f"{gain.gain:.3f}",
        "95 % interval": interval_text(gain.interval),
        "Fieller": interval_text(gain.fieller),
        "exponent": f"{gain.alpha:.4f}",
        "equal exponents, p": f"{gain.parallelism.p:.2g}",
    }
    shared = f"{o.gain:.3f} ({interval_text(o.interval)})" if (o := gain.offset) else ""
    row["sharing an irreducible loss"] = shared or "not identified"
    return row | {"unpaired (for comparison)": interval_text(gain.unpaired.interval)}


def _loss(runs: pd.DataFrame, gains: dict[str, Gain], title: str) -> Figure:
    drawn, (ax,) = plots.new_axes()
    draw_gains(ax, runs, gains)
    plots.heading(ax, title)
    return drawn


def draw_gains(ax: Axes, runs: pd.DataFrame, gains: dict[str, Gain]) -> None:
    """Runs, the baseline's law, that law at each gain times the compute, and an arrow between the
    two lines.
    """
    means = runs[runs["variant"] == BASELINE].groupby("size")[["flops", LOSS]].mean()
    law = fit(POWER_LAW, means["flops"], means[LOSS])
    starts = {v: float(gain.per_size["x_variant"].max()) for v, gain in gains.items()}
    reach = [*means["flops"], *(starts[v] * gain.gain for v, gain in gains.items())]
    x = np.geomspace(min(reach), max(reach), 80)
    low, high = law.band(x)
    lines = {BASELINE: pd.DataFrame({"x": x, "y": law.predict(x), "low": low, "high": high})}
    arrows = {}
    for variant, gain in gains.items():
        x = np.geomspace(gain.per_size["x_variant"].min(), starts[variant], 80)
        y, low, high = (law.predict(x * factor) for factor in (gain.gain, *gain.interval[::-1]))
        lines[variant] = pd.DataFrame({"x": x, "y": y, "low": low, "high": high})
        arrows[variant] = (starts[variant], gain.gain, float(y[-1]))
    shown = runs[runs["variant"].isin([BASELINE, *gains])]
    plots.loss_against_compute(ax, shown, lines, arrows)


def _per_size(gains: dict[str, Gain]) -> Figure:
    drawn, (ax,) = plots.new_axes()
    table = pd.concat([gain.per_size.assign(variant=variant) for variant, gain in gains.items()])
    pooled = {variant: (gain.gain, *gain.interval) for variant, gain in gains.items()}
    plots.gain_per_size(ax, table, pooled)
    return drawn


def _by_compute(gains: dict[str, Gain]) -> Figure:
    drawn, (ax,) = plots.new_axes()
    curves = {}
    for variant, gain in gains.items():
        own = gain.per_size["x_variant"]
        points = [gain.at(float(c)) for c in np.geomspace(own.min(), own.max(), 60)]
        rows = [
            {
                "x": p.C,
                "gain": p.gain,
                "low": p.interval[0],
                "high": p.interval[1],
                "extrapolates": p.extrapolates,
            }
            for p in points
        ]
        curves[variant] = pd.DataFrame(rows)
    plots.gain_by_compute(ax, curves)
    return drawn


GAINS = (_gains,)
