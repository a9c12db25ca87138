"""Studies of shape, each where the runs carry it: sizes at equal compute, blocks, depth and width,
and what is read over depth.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import paper, plots
from analysis.ablation import ablation_table
from analysis.grid import grid_optimum
from analysis.report.evidence import BASELINE, LOSS, NARROW, Evidence
from analysis.report.page import Page
from analysis.report.summaries import interval_text, signed, spread
from analysis.tables import markdown

PROFILES = {
    "input_rms": "RMS of the hidden state",
    "output_rms": "RMS of the sublayer's output",
    "gradient_norm": "gradient norm at the output",
}


def _isoflop(evidence: Evidence, page: Page) -> None:
    """Valleys at equal compute."""
    if not (found := evidence.isoflop):
        return
    panels, shown, laws = {}, [], []
    for variant, study in found.items():
        panels[f"isoflop_{variant}"], (ax,) = plots.new_axes()
        shown.append(ax)
        runs = evidence.done[evidence.done["variant"] == variant]
        runs = runs.assign(budget=runs["budget"].str.split().str[0].astype(float))
        curves = {
            float(
                runs["budget"].iloc[np.abs(runs["flops"].to_numpy() - v.budget).argmin()]
            ): v.curve
            for v in study.valleys
        }
        lowest = [v for v in study.valleys if v.best.inside]
        plots.isoflop_valleys(
            ax,
            runs,
            curves,
            pd.DataFrame({"x": [v.best.at for v in lowest], "y": [v.loss for v in lowest]}),
        )
        plots.heading(ax, variant)
        for name, law in (("N", study.size_law), ("D", study.tokens_law)):
            if law is None:
                continue
            low, high = law.interval()["b"]
            laws.append(
                f"{variant}: the best {name} grows as C^{law.params['b']:.3f} (95 % interval of "
                f"the exponent {low:.3f} to {high:.3f})"
            )
        laws += study.warnings
    page.add("## Compute-optimal sizes")
    page.bullets(laws)
    for which in "xy":
        plots.same_limits(shown, which)
    page.figure(
        panels,
        "Loss against size at equal compute, fitted parabolas in log N, and their lowest points.",
    )


def _block_size(evidence: Evidence, page: Page) -> None:
    """Loss by sublayers in a block at the largest size, beside the paper's Fig. 6."""
    runs = evidence.chosen[evidence.chosen["size"] == evidence.sizes[-1]]
    if not {"model.num_layers", "model.residual.num_blocks"} <= set(runs):
        return
    size = runs.get("model.residual.block_size", pd.Series(np.nan, runs.index)).astype(float)
    size = size.fillna(
        2 * runs["model.num_layers"] / runs["model.residual.num_blocks"].astype(float)
    ).mask(runs["variant"] == "full", 1.0)
    if size.nunique() < 3:
        return
    theirs = paper.figure_6().rename(columns={"block_size": "x", LOSS: "mean"}).sort_values("x")
    lines = {
        "this sweep": spread(runs.assign(x=size), ["x"], LOSS),
        "the paper's Fig. 6": theirs.assign(low=theirs["mean"], high=theirs["mean"]),
    }
    levels = runs.loc[runs["variant"] == BASELINE, LOSS].mean(), 1.766
    panels, shown = {}, []
    files = ("block_size", "block_size_paper")
    for file, (title, points), level in zip(files, lines.items(), levels, strict=True):
        panels[file], (ax,) = plots.new_axes()
        shown.append(ax)
        points = points.assign(variant="AttnRes", best=points["mean"] == points["mean"].min())
        plots.learning_rate_bowls(ax, points, x="sublayers in a block (1: Full)")
        ax.axhline(level, color="black", linestyle=":")
        plots.heading(ax, title)
    plots.same_limits(shown, "x")
    page.add("## Block size")
    page.figure(
        panels,
        f"Loss by block size at {evidence.sizes[-1]}; dotted: the baseline. Bars are the range of "
        "seeds.",
    )


def _by_layers(evidence: Evidence, page: Page) -> None:
    """Difference to the baseline by depth, where depth varies at about equal compute."""
    runs, layers = evidence.chosen, "model.num_layers"
    if (
        evidence.isoflop
        or evidence.ablation is None
        or not {layers, "flops"} <= set(runs)
        or runs[layers].nunique() < 3
    ):
        return
    if runs["flops"].max() > NARROW * runs["flops"].min():
        return
    tables = [
        ablation_table(part).rows.assign(x=depth)
        for depth, part in runs.groupby(layers)
        if BASELINE in set(part["variant"])
    ]
    found = pd.concat(tables).query("variant != @BASELINE")
    text = found.assign(text=[signed(row) for row in found.to_dict("records")]).pivot(
        index="x", columns="variant", values="text"
    )
    drawn, (ax,) = plots.new_axes()
    plots.learning_rate_bowls(
        ax,
        found.rename(columns={"difference": "mean"}).assign(best=False),
        x="layers",
        y=f"difference to {BASELINE} (nats)",
    )
    ax.axhline(0, color="black", linewidth=0.8)
    page.add(
        "## Depth at fixed compute",
        markdown(text.reset_index(names="layers").fillna("not measured")),
    )
    page.figure(
        {"by_layers": drawn},
        "Paired difference to the baseline by depth at equal compute, with 95 % intervals: below "
        "zero is better.",
    )


def _architecture(evidence: Evidence, page: Page) -> None:
    """Loss by depth and width, beside the paper's Fig. 7."""
    keys = ["model.dim", "model.num_layers", "model.num_heads"]
    if not set(keys) <= set(evidence.chosen):
        return
    # heads are a row here, not something to choose
    table = evidence.done if evidence.tuned == ["model.num_heads"] else evidence.chosen
    shape = {
        f"{name} / num_layers": (table[key] / table["model.num_layers"]).round(2)
        for name, key in (("heads", keys[2]), ("d", keys[0]))
    }
    grids = {}
    for variant, runs in table.assign(**shape).groupby("variant"):
        grid = runs.pivot_table(
            index="heads / num_layers", columns="d / num_layers", values=LOSS
        ).sort_index(ascending=False)
        if grid.shape[0] >= 2 and grid.shape[1] >= 3 and grid.notna().sum().sum() >= 7:
            grids[str(variant)] = grid
    if not grids:
        return
    best = {variant: grid_optimum(grid) for variant, grid in grids.items()}
    published = {f"the paper's {name}": paper.figure_7(name) for name in ("baseline", "attnres")}
    panels = {}
    for some in (grids, published):  # one scale of colours each
        ends = min(g.min().min() for g in some.values()), max(g.max().max() for g in some.values())
        for title, grid in some.items():
            panels[f"architecture_{title}"], (ax,) = plots.new_axes()
            plots.grid_map(ax, grid, title, ends=ends)
    lines = [
        f"{v}: lowest at d / num_layers = {b.column:g}, {len(b.tied)} other cells within its "
        f"noise of {b.noise:.4f} nats"
        for v, b in best.items()
    ]
    for variant in best.keys() & set(evidence.variants) if BASELINE in best else ():
        ratio, limits = best[BASELINE].shift_to(best[variant])
        lines.append(
            f"{variant}: the smooth optimum of d / num_layers is {ratio:.2f} times the baseline's "
            f"(95 % interval {interval_text(limits)})"
            if np.isfinite(ratio)
            else f"{variant}: the smooth optimum of d / num_layers cannot be compared, for a "
            "surface has none"
        )
    page.add("## Depth against width")
    page.bullets(lines)
    page.figure(
        panels,
        "Loss by shape, ours and the paper's Fig. 7; the lowest is framed. Colours have one scale "
        "in ours, and one in the paper's.",
    )


def _depth(evidence: Evidence, page: Page) -> None:
    """Attention maps of the variants that have one; magnitudes and gradients by depth of all."""
    if not evidence.depth:
        return
    page.add("## Depth")
    if maps := {
        variant: record for variant, record in evidence.depth.items() if len(record.attention)
    }:
        most = max(float(record.attention.max().max()) for record in maps.values())
        panels = {}
        for variant, record in maps.items():
            panels[f"depth_attention_{variant}"], (ax,) = plots.new_axes(height=4.6)
            plots.depth_map(ax, record.attention, f"{variant}, step {record.step}", most=most)
        page.figure(
            panels,
            f"Learned depth attention at {evidence.sizes[-1]}, one seed, averaged over tokens; one "
            "scale of colours.",
        )
    profiles = {variant: record.profile for variant, record in evidence.depth.items()}
    panels = {}
    for key in [key for key in PROFILES if all(key in profile for profile in profiles.values())]:
        panels[f"by_depth_{key}"], (ax,) = plots.new_axes()
        plots.by_depth(ax, {v: p[key] for v, p in profiles.items()}, PROFILES[key])
    if panels:
        page.figure(
            panels,
            f"Magnitude and gradient by depth at {evidence.sizes[-1]}, one seed.",
        )


STUDIES = (_isoflop, _block_size, _by_layers, _architecture, _depth)
