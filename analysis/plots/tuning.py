"""Bowls of a tuned sweep: loss against the value, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np

from analysis.plots.style import heading, label, legend, log_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def tuning_bowls(ax: Axes, cells: pd.DataFrame, chosen: pd.DataFrame, key: str, title: str) -> Axes:
    """One variant: a line for each size over the values tried, the smallest size darkest, a star
    where the size was measured.

    ``cells``: columns ``size``, ``key``, ``loss``, in the order of the sizes; ``chosen``: columns
    ``size``, ``best``, ``loss``.
    """
    sizes: Sequence[object] = list(dict.fromkeys(cells["size"]))
    shades = mpl.colormaps["cividis"](np.linspace(0, 0.9, len(sizes)))
    for size, shade in zip(sizes, shades, strict=True):
        rows = cells[(cells["size"] == size) & np.isfinite(cells["loss"])].sort_values(key)
        ax.plot(rows[key], rows["loss"], "o-", color=shade, markersize=3, label=str(size))
        star = chosen[chosen["size"] == size]
        ax.plot(star["best"], star["loss"], "*", color=shade, markersize=9)
    ax.set(xlabel=label(key), ylabel=label("val/loss"))
    heading(ax, title)
    legend(ax)
    return log_axes(ax, "x")
