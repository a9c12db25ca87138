"""Comparisons of variants, each where the runs carry it: losses, differences, and what a shared
setting costs; the paper's beside ours.
"""

from __future__ import annotations

import pandas as pd

from analysis import paper, plots
from analysis.ablation import ablation_table
from analysis.report.evidence import ACCURACY, BASELINE, LOSS, Evidence
from analysis.report.page import Page
from analysis.report.summaries import signed, spread
from analysis.runs import load_curves
from analysis.tables import markdown


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
    _curves(evidence, page)
    _bowls(evidence, page)


def _curves(evidence: Evidence, page: Page) -> None:
    """Losses while training at the largest size, against what the verdict is about."""
    if "run_id" not in evidence.runs:
        return
    size = evidence.sizes[-1]
    some = evidence.chosen[evidence.chosen["size"] == size].sort_values("seed")
    curves = load_curves(
        evidence.source,
        evidence.tracking_uri,
        keys=("train/loss", LOSS),
        runs=some.groupby("variant").head(5),
    )
    panels = {}
    for key, name in (("train/loss", "curves"), (LOSS, "curves_validation")):
        points = curves[curves["key"] == key]
        if points["step"].nunique() < 2:
            continue
        bands = spread(points, ["variant", "step"], "value")
        bands["x"] = points.groupby(["variant", "step"])["flops"].mean().to_numpy()
        panels[name], (ax,) = plots.new_axes()
        plots.training_curves(ax, bands.dropna(), y=key)
    if panels:
        page.figure(panels, f"Loss in training at {size}: mean and range over the seeds.")


def _bowls(evidence: Evidence, page: Page) -> None:
    """Loss by each factor at the largest size."""
    size = evidence.sizes[-1]
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
            {f"by_{key}": drawn},
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
    measured = measured.fillna({"low": measured["difference"], "high": measured["difference"]})
    published = paper.table_4().assign(difference=lambda t: t[LOSS] - t[LOSS].iloc[0]).iloc[1:]
    published = published.assign(low=published["difference"], high=published["difference"])
    tables = {
        "ablation": (measured, "this sweep"),
        "ablation_paper": (published, "the paper's Table 4 (436M)"),
    }
    panels = {}
    for name, (table, title) in tables.items():
        panels[name], (ax,) = plots.new_axes(height=1.2 + 0.26 * max(len(measured), 11))
        plots.ablation_forest(ax, table)
        plots.heading(ax, title)
    asked = f"Is the loss lower at {evidence.held_equal}?"
    page.add("## Ablation", asked, found.to_markdown())
    page.figure(
        panels,
        "Difference of each variant to the baseline, ours with 95 % intervals and the paper's, "
        "which gives none.",
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


COMPARISONS = (_losses, _ablation, _shared_setting)
