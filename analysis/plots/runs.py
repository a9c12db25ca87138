"""Training curves, learning-rate bowls, ablation forests; depth attention, magnitudes and gradients
by depth; grids of two factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from analysis.plots.style import band, heading, label, legend, log_axes, looks
from attnres_lab.runs.looks import BLACK


def training_curves(
    ax: Axes, bands: pd.DataFrame, *, x: str = "flops", y: str = "train/loss"
) -> Axes:
    """Mean over seeds with the band of the seeds. ``bands``: columns ``variant``, ``x``, ``mean``,
    ``low``, ``high``.
    """
    style = looks(bands["variant"])
    for variant, rows in bands.groupby("variant", sort=False):
        look = style[variant]
        if (rows["high"] > rows["low"]).any():
            band(ax, rows["x"], rows["low"], rows["high"], look.color, len(style))
        every = max(1, len(rows) // 6)
        ax.plot(rows["x"], rows["mean"], markevery=every, label=str(variant), **look.drawn)
    ax.set(xlabel=label(x), ylabel=label(y))
    legend(ax)
    return log_axes(ax, "x")


def learning_rate_bowls(
    ax: Axes, points: pd.DataFrame, *, x: str = "optim.lr", y: str = "val/loss"
) -> Axes:
    """Loss against a factor, a line per variant over the means of the seeds, the best ringed; a
    hollow marker on the edge of the range.

    ``points``: columns ``variant``, ``x`` (the factor), ``mean``, ``low``, ``high`` (over seeds),
    ``best`` (bool); ``x`` may be text.
    """
    style = looks(points["variant"])
    for variant, rows in points.groupby("variant", sort=False):
        look = style[variant]
        error = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        ax.errorbar(rows["x"], rows["mean"], error, capsize=2, label=str(variant), **look.drawn)
        best = rows[rows["best"]]
        ax.plot(
            best["x"], best["mean"], "o", markersize=11, markerfacecolor="none", color=look.color
        )
    ax.set(xlabel=label(x), ylabel=label(y))
    legend(ax, title="ringed: lowest" if points["best"].any() else None)
    return (
        log_axes(ax, "x")
        if pd.api.types.is_numeric_dtype(points["x"]) and (points["x"] > 0).all()
        else ax
    )


def ablation_forest(
    ax: Axes, table: pd.DataFrame, baseline: str = "baseline", *, y: str = "val/loss"
) -> Axes:
    """Difference to the baseline with its interval, best on top. ``table``: columns ``variant``,
    ``difference``, ``low``, ``high``.
    """
    style = looks(table["variant"])
    rows = table.sort_values("difference", ascending=False).reset_index(drop=True)
    for place, (variant, value, low, high) in enumerate(
        rows[["variant", "difference", "low", "high"]].itertuples(index=False)
    ):
        look = style[variant]
        ax.errorbar(
            value,
            place,
            xerr=[[value - low], [high - value]],
            fmt=look.marker,
            color=look.color,
            capsize=3,
        )
    ax.axvline(0, color=BLACK, linewidth=0.8)
    ax.set_yticks(range(len(rows)), rows["variant"].astype(str))
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel(f"{label(y)},\ndifference to {baseline}: left is better")
    return ax


def depth_map(
    ax: Axes, attention: pd.DataFrame, title: str = "", *, most: float | None = None
) -> Axes:
    """Depth-attention weights: a row per read, the first on top, a column per source; blank where a
    read has no such source.

    ``attention``: as ``DepthRecord.attention``, indexed by (sublayer, kind). ``most``: the weight
    at the upper end of the colours, one number for maps that are to be compared; by default the
    largest.
    """
    image = ax.imshow(
        attention.to_numpy(float),
        cmap="cividis",
        vmin=0,
        vmax=most,
        aspect="auto",
        interpolation="nearest",
    )
    ax.figure.colorbar(image, ax=ax, label="depth-attention weight", fraction=0.05)
    short = {"attention": "attn", "output": "out", "embedding": "emb"}
    rows = [f"{sublayer} {short.get(kind, kind)}" for sublayer, kind in attention.index]
    _ticks(ax, rows, [short.get(name, str(name)) for name in attention.columns])
    ax.set(xlabel="source", ylabel="read before sublayer")
    heading(ax, title)
    return ax


def by_depth(ax: Axes, profiles: Mapping[str, pd.Series], ylabel: str) -> Axes:
    """One quantity against the sublayer, a line per variant, on a logarithmic scale. ``profiles``:
    by variant, indexed by sublayer.
    """
    style = looks(profiles)
    for variant, values in profiles.items():
        ax.plot(values.index, values, markersize=3.5, label=variant, **style[variant].drawn)
    ax.set(xlabel="sublayer", ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    legend(ax)
    return log_axes(ax, "y")


def grid_map(
    ax: Axes, grid: pd.DataFrame, title: str = "", *, ends: tuple[float, float] | None = None
) -> Axes:
    """Losses of a grid of two factors, written into the cells, the lowest framed. ``grid``: numbers
    on both of its axes, which are named. ``ends``: the losses at the ends of the colours, the same
    for grids that are to be compared; by default its own.
    """
    values = grid.to_numpy(float)
    ends = ends or (np.nanmin(values), np.nanmax(values))
    ax.imshow(values, cmap="cividis_r", aspect="auto", vmin=ends[0], vmax=ends[1])
    middle = sum(ends) / 2
    best = np.unravel_index(np.nanargmin(values), values.shape)
    for (row, column), value in np.ndenumerate(values):
        weight = "bold" if (row, column) == best else "normal"
        ax.text(
            column,
            row,
            f"{value:.3f}",
            ha="center",
            va="center",
            fontsize=7.5,
            weight=weight,
            color="black" if value < middle else "white",
        )
    ax.add_patch(
        Rectangle(
            (float(best[1]) - 0.5, float(best[0]) - 0.5),
            1,
            1,
            fill=False,
            edgecolor="#D55E00",
            linewidth=2,
        )
    )
    _ticks(ax, [f"{name:g}" for name in grid.index], [f"{name:g}" for name in grid.columns])
    ax.set(xlabel=str(grid.columns.name), ylabel=str(grid.index.name))
    heading(ax, title)
    return ax


def _ticks(ax: Axes, rows: list[str], columns: list[str], size: float = 7.0) -> None:
    """Every label while there is room, then every second, and so on. Letters of ``size`` points;
    the axes get about 0.6 of the figure, whose layout is not known yet.
    """
    figure: Any = ax.figure
    across, up = (inches * 72 * 0.6 for inches in figure.get_size_inches())
    for names, place, room in ((rows, ax.set_yticks, up), (columns, ax.set_xticks, across)):
        step = -(-len(names) // int(room / (1.3 * size)))
        place(range(0, len(names), step), names[::step], fontsize=size)
    if (max(map(len, columns)) + 1) * len(columns) * 0.6 * size > across:
        ax.tick_params(axis="x", labelrotation=90)
    ax.grid(visible=False)
