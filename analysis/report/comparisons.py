"""Comparisons of variants, each where the runs carry it: gains, losses, differences, and what a
shared setting costs; the paper's beside ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis import paper, plots
from analysis.ablation import ablation_table
from analysis.fits.fit import fit
from analysis.fits.laws import POWER_LAW
from analysis.gain.gain import Gain, compute_equivalent_gain
from analysis.report.evidence import ACCURACY, BASELINE, LOSS, Evidence
from analysis.report.page import Page
from analysis.report.summaries import interval_text, signed, spread
from analysis.runs import load_curves
from analysis.tables import markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _gains(evidence: Evidence, page: Page) -> None:
    """Gains by variant and x axis; loss against compute, ours beside the paper's Table 2; gain at
    each size, and by compute.
    """
    if not (gains := evidence.gains_per("flops")) or not evidence.judged:
        return
    rows = []
    for gain in (
        gain
        for variant in gains
        for gain in evidence.gains[variant].values()
        if isinstance(gain, Gain)
    ):
        row = {
            "variant": gain.variant,
            "per": gain.x,
            "gain": f"{gain.gain:.3f}",
            "95 % interval": interval_text(gain.interval),
        }
        row |= {
            "Fieller": interval_text(gain.fieller),
            "exponent": f"{gain.alpha:.4f}",
            "equal exponents, p": f"{gain.parallelism.p:.2g}",
        }
        row["sharing an irreducible loss"] = (
            f"{o.gain:.3f} ({interval_text(o.interval)})"
            if (o := gain.offset)
            else "not identified"
        )
        rows.append(row | {"unpaired (for comparison)": interval_text(gain.unpaired.interval)})
    asked = (
        "How much compute is a variant worth? A gain of 1.2 per FLOP says that the baseline "
        "reaches its loss with 1.2 times the FLOP."
    )
    page.add("## Compute-equivalent gain", asked, markdown(pd.DataFrame(rows)))
    drawn, (ours, theirs) = plots.new_axes(10, 3.9, columns=2)
    _loss_against_compute(
        ours, evidence.comparable if evidence.isoflop else evidence.chosen, gains, "this sweep"
    )
    published = paper.table_2().query("variant != 'mhc-lite'")
    title = "the paper's Table 2 (C = 6ND, active parameters)"
    _loss_against_compute(
        theirs,
        published,
        {v: compute_equivalent_gain(published, v) for v in ("block", "full")},
        title,
    )
    caption = (
        "Loss against compute, and power laws with 95 % bands. Each arrow starts at a variant's "
        "largest runs and is as long as its gain over all sizes, the number in the legend."
    )
    page.figure("loss.png", drawn, caption)
    drawn, (ax,) = plots.new_axes()
    table = pd.concat([gain.per_size.assign(variant=variant) for variant, gain in gains.items()])
    plots.gain_per_size(
        ax, table, {variant: (gain.gain, *gain.interval) for variant, gain in gains.items()}
    )
    page.figure(
        "gain_per_size.png",
        drawn,
        "Gain at each size with the common exponent, and over all sizes with its 95 % interval.",
    )
    drawn, (ax,) = plots.new_axes()
    curves = {}
    for variant, gain in gains.items():
        points = [
            gain.at(float(c))
            for c in np.geomspace(
                gain.per_size["x_variant"].min(), gain.per_size["x_variant"].max(), 60
            )
        ]
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
    caption = (
        "Gain by compute from separate slopes: a trend here is noise unless equal exponents are "
        "rejected (table above)."
    )
    page.figure("gain_by_compute.png", drawn, caption)


def _loss_against_compute(ax: Axes, runs: pd.DataFrame, gains: dict[str, Gain], title: str) -> None:
    tips = {variant: gain.per_size.iloc[-1] for variant, gain in gains.items()}
    arrows = {
        variant: (tip["x_variant"], gains[variant].gain, tip["loss_variant"])
        for variant, tip in tips.items()
    }
    fits = {}
    for variant in [BASELINE, *gains]:
        means = runs[runs["variant"] == variant].groupby("size")[["flops", LOSS]].mean()
        reach = [
            *means["flops"],
            *(start * gain for start, gain, _ in arrows.values() if variant == BASELINE),
        ]
        x, law = (
            np.geomspace(min(reach), max(reach), 80),
            fit(POWER_LAW, means["flops"], means[LOSS]),
        )
        low, high = law.band(x)
        fits[variant] = pd.DataFrame({"x": x, "y": law.predict(x), "low": low, "high": high})
    plots.loss_against_compute(ax, runs[runs["variant"].isin([BASELINE, *gains])], fits, arrows)
    ax.set_title(title)


def _losses(evidence: Evidence, page: Page) -> None:
    """Mean loss by size and variant, and the paired difference; for an IsoFLOP study the lowest
    losses by budget. Curves and bowls below.
    """
    runs = evidence.comparable if evidence.isoflop else evidence.chosen
    variants = [BASELINE] * (BASELINE in set(runs["variant"])) + evidence.variants
    rows = []
    for size, part in runs.groupby("size", sort=False):
        row = {"size": size}
        for variant in variants:
            values = part.loc[part["variant"] == variant, LOSS]
            sd = f" ± {values.std():.4f}" if len(values) > 1 else ""
            row[variant] = f"{values.mean():.4f}{sd}" if len(values) else "not measured"
        if set(part["variant"]) > {BASELINE}:
            for found in ablation_table(part).rows.query("variant != @BASELINE").to_dict("records"):
                row[f"{found['variant']} - {BASELINE}"] = signed(found)
        rows.append(row)
    note = (
        "Validation loss in nats per token, mean ± standard deviation over the seeds; paired "
        "differences with their 95 % intervals."
    )
    page.add("## Losses", note, markdown(pd.DataFrame(rows).fillna("not measured")))
    _accuracy(runs, variants, page)
    size = evidence.sizes[-1]
    if "run_id" in evidence.runs:
        some = (
            evidence.chosen[evidence.chosen["size"] == size]
            .sort_values("seed")
            .groupby("variant")
            .head(5)
        )
        curves = load_curves(
            evidence.source, evidence.tracking_uri, keys=("train/loss",), runs=some
        )
        if curves["step"].nunique() > 1:
            bands = spread(curves, ["variant", "step"], "value")
            bands["x"] = curves.groupby(["variant", "step"])["tokens"].mean().to_numpy()
            drawn, (ax,) = plots.new_axes()
            plots.training_curves(ax, bands.dropna())
            page.figure(
                "curves.png", drawn, f"Training loss at {size}: mean and range over the seeds."
            )
    for key in evidence.tuned:
        settings = spread(
            evidence.done[evidence.done["size"] == size], ["variant", *evidence.tuned], LOSS
        )
        points = settings.loc[settings.groupby(["variant", key])["mean"].idxmin()].rename(
            columns={key: "x"}
        )
        points["best"] = points["mean"] == points.groupby("variant")["mean"].transform("min")
        drawn, (ax,) = plots.new_axes()
        plots.learning_rate_bowls(ax, points, x=key)
        others = " at the best of the other factors" if len(evidence.tuned) > 1 else ""
        page.figure(
            f"by_{key}.png",
            drawn,
            f"Loss at {size} by {key}{others}: mean and range over the seeds.",
        )


def _accuracy(runs: pd.DataFrame, variants: list[str], page: Page) -> None:
    """Mean share of images whose class is found, by size and variant, where the runs have it."""
    if ACCURACY not in runs or runs[ACCURACY].isna().all():
        return
    cells = runs.groupby(["size", "variant"], sort=False)[ACCURACY].agg(["mean", "std"])
    text = [f"{mean:.4f} ± {sd:.4f}" for mean, sd in cells.itertuples(index=False)]
    table = pd.Series(text, cells.index).unstack().reindex(runs["size"].unique())[variants]
    note = "Share of the validation images whose class is found, mean ± standard deviation."
    page.add("## Accuracy", note, markdown(table.reset_index().fillna("not measured")))


def _ablation(evidence: Evidence, page: Page) -> None:
    """Every variant against the baseline, beside the paper's Table 4."""
    if (found := evidence.ablation) is None or not evidence.judged:
        return
    measured = found.rows[(found.rows["variant"] != BASELINE) & found.rows["difference"].notna()]
    drawn, (ours, theirs) = plots.new_axes(10, 1.4 + 0.28 * max(len(found.rows), 12), columns=2)
    plots.ablation_forest(
        ours, measured.fillna({"low": measured["difference"], "high": measured["difference"]})
    )
    ours.set_title("this sweep")
    published = paper.table_4().assign(difference=lambda t: t[LOSS] - t[LOSS].iloc[0]).iloc[1:]
    plots.ablation_forest(
        theirs, published.assign(low=published["difference"], high=published["difference"])
    )
    theirs.set_title("the paper's Table 4 (436M, no intervals given)")
    asked = f"Is the loss lower at {evidence.held_equal}?"
    page.add("## Ablation", asked, found.to_markdown())
    page.figure(
        "ablation.png", drawn, "Difference of each variant to the baseline, ours and the paper's."
    )


def _shared_setting(evidence: Evidence, page: Page) -> None:
    """What sharing the baseline's best value of the one tuned factor costs each variant, against
    its own best.
    """
    done, best = evidence.done, evidence.chosen
    if (
        len(evidence.tuned) != 1
        or len(evidence.factors) > 1
        or BASELINE not in set(done["variant"])
        or not evidence.variants
    ):
        return
    key = evidence.tuned[0]
    reference = best[best["variant"] == BASELINE].groupby("size")[key].first().to_dict()
    rows = []
    for (size, variant), own in best.groupby(["size", "variant"], sort=False):
        shared = done[
            (done["size"] == size)
            & (done["variant"] == variant)
            & (done[key] == reference.get(size))
        ]
        cost = (shared.set_index("seed")[LOSS] - own.set_index("seed")[LOSS]).dropna()
        row = {
            "size": size,
            "variant": variant,
            "own best": own[key].iloc[0],
            "loss there": f"{own[LOSS].mean():.4f}",
        }
        if len(cost):
            sd = f" ± {cost.std():.4f}" if len(cost) > 1 else ""
            row |= {
                "the baseline's best": reference.get(size),
                "loss at it": f"{shared[LOSS].mean():.4f}",
                "cost of sharing": f"{cost.mean():.4f}{sd}",
            }
        rows.append(row)
    note = (
        "Each variant at its own best value and at the baseline's; cost in nats, mean ± standard "
        "deviation over seeds."
    )
    bias = (
        "The own best is picked and reported on the same seeds, so the cost is if anything too "
        "high."
    )
    page.add(f"## Own or shared {key}", f"{note} {bias}", markdown(pd.DataFrame(rows)))


COMPARISONS = (_gains, _losses, _ablation, _shared_setting)
