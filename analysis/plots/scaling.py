"""Loss against compute, gains, and IsoFLOP valleys."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes

from analysis.plots.style import band, label, legend, log_axes, looks
from attnres_lab.runs.looks import BLACK

Interval = tuple[float, float, float]  # value, low, high


def loss_against_compute(
    ax: Axes,
    runs: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    arrows: Mapping[str, Interval] | None = None,
    *,
    x: str = "flops",
    y: str = "val/loss",
) -> Axes:
    """Runs as points, laws as lines with bands, gains as arrows, on logarithmic axes.

    ``runs``: columns ``variant``, ``x``, ``y``. ``curves``: by variant, columns ``x``, ``y`` and,
    where known, ``low`` and ``high``; dotted where there are no runs. ``arrows``: by variant (its
    compute, gain, loss): an arrow from the variant's compute to gain times as much, at one loss;
    the gain is in the legend, and the first curve without an arrow is the baseline.
    """
    arrows = arrows or {}
    style = looks(
        runs["variant"], next((variant for variant in curves if variant not in arrows), "baseline")
    )
    for variant, points in runs.groupby("variant", sort=False):
        look = style[variant]
        ax.plot(
            points[x],
            points[y],
            look.marker,
            color=look.color,
            markerfacecolor="none",
            label=None if variant in curves else str(variant),
        )
    for variant, curve in curves.items():
        look, reach = style[variant], runs.loc[runs["variant"] == variant, x]
        if "low" in curve:
            band(ax, curve["x"], curve["low"], curve["high"], look.color, len(curves))
        text = f"{variant}, {arrows[variant][1]:.2f}×" if variant in arrows else variant
        inside = curve[curve["x"].between(reach.min() * (1 - 1e-9), reach.max() * (1 + 1e-9))]
        ax.plot(curve["x"], curve["y"], ":", color=look.color, linewidth=1)
        ax.plot(inside["x"], inside["y"], markevery=[], label=text, **look.drawn)
    for variant, (start, gain, height) in arrows.items():
        # an annotation alone does not widen the axes
        ax.plot([start, start * gain], [height, height], alpha=0)
        arrow = {"arrowstyle": "->", "color": style[variant].color, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (start * gain, height), (start, height), arrowprops=arrow)
    ax.set(xlabel=label(x), ylabel=label(y))
    legend(ax)
    return log_axes(ax)


def gain_by_compute(ax: Axes, curves: Mapping[str, pd.DataFrame], *, x: str = "flops") -> Axes:
    """Compute-equivalent gain against compute with its band; dotted where the baseline is
    extrapolated.

    ``curves``: by variant, columns ``x``, ``gain``, ``low``, ``high``, ``extrapolates`` (bool).
    """
    style = looks(curves)
    for variant, curve in curves.items():
        look, color = style[variant], style[variant].color
        inside = curve[~curve["extrapolates"]]
        band(ax, curve["x"], curve["low"], curve["high"], color, len(curves))
        ax.plot(curve["x"], curve["gain"], color=color, linestyle=":")
        ax.plot(
            inside["x"],
            inside["gain"],
            color=color,
            marker=look.marker,
            markevery=max(1, len(inside) // 6),
            label=variant,
        )
    ax.axhline(1.0, color=BLACK, linewidth=0.8)
    ax.set(xlabel=label(x), ylabel="compute-equivalent gain (×)")
    dotted = (
        "dotted:\nbaseline\nextrapolated"
        if any(c["extrapolates"].any() for c in curves.values())
        else None
    )
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), title=dotted)
    return log_axes(ax)


def gain_per_size(ax: Axes, table: pd.DataFrame, pooled: Mapping[str, Interval]) -> Axes:
    """Gain at each size, and over all sizes with its interval.

    ``table``: columns ``variant``, ``size``, ``gain``, sizes in the order to show. ``pooled``: by
    variant, gain, low, high.
    """
    sizes = [str(size) for size in table["size"].unique()]
    style = looks(table["variant"])
    variants = list(table["variant"].unique())
    for k, variant in enumerate(variants):
        look, shift = style[variant], 0.18 * (k - (len(variants) - 1) / 2)
        rows = table[table["variant"] == variant]
        ax.plot(
            [sizes.index(str(s)) + shift for s in rows["size"]],
            rows["gain"],
            look.marker,
            color=look.color,
            label=str(variant),
        )
        if variant in pooled:
            value, low, high = pooled[variant]
            ax.errorbar(
                len(sizes) + shift,
                value,
                [[value - low], [high - value]],
                fmt=look.marker,
                color=look.color,
                capsize=3,
            )
    ax.axvline(len(sizes) - 0.5, color="0.6", linewidth=0.8)
    ax.axhline(1.0, color=BLACK, linewidth=0.8)
    ax.set(ylabel="compute-equivalent gain (×)")
    many = len("".join(sizes)) > 36
    ax.set_xticks(range(len(sizes) + 1), [*sizes, "all sizes"], rotation=90 if many else 0)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return log_axes(ax, "y")


def isoflop_valleys(
    ax: Axes,
    runs: pd.DataFrame,
    curves: Mapping[float, pd.DataFrame],
    optima: pd.DataFrame,
    *,
    x: str = "params",
) -> Axes:
    """Loss against size at each budget, with the fitted valley and its lowest point.

    ``runs``: columns ``budget`` (FLOP), ``x``, ``val/loss``. ``curves``: by budget, columns ``x``,
    ``y``. ``optima``: columns ``x``, ``y``, in the order of the budgets.
    """
    budgets = sorted(runs["budget"].unique())
    colors = mpl.colormaps["viridis"]
    for k, budget in enumerate(budgets):
        color = colors(0.85 * k / max(len(budgets) - 1, 1))
        points = runs[runs["budget"] == budget]
        ax.plot(
            points[x],
            points["val/loss"],
            "o",
            color=color,
            markersize=4,
            label=f"{budget:.2g} FLOP",
        )
        if budget in curves:
            ax.plot(curves[budget]["x"], curves[budget]["y"], color=color)
    ax.plot(optima["x"], optima["y"], "*", color=BLACK, markersize=9, label="lowest")
    ax.set(xlabel=label(x), ylabel=label("val/loss"))
    legend(ax)
    return log_axes(ax, "x")
