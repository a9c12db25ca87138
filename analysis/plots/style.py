"""One look for all figures: readable in print, and for colour-blind readers by colour, marker and
line alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from attnres_lab.runs.looks import looks as by_name

PRINT: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "savefig.dpi": 160,
}
# of the baseline, then of the others (attnres_lab/runs/looks.py)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))
AXIS = {
    "flops": "training compute C (FLOP)",
    "tokens": "training tokens",
    "seconds": "wall-clock training time (s)",
    "device_seconds": "device time (s)",
    "params": "non-embedding parameters N",
    "val/loss": "validation loss (nats per token)",
    "train/loss": "training loss (nats per token)",
    "val/bpb": "validation loss (bits per byte)",
    "optim.lr": "learning rate",
}


@dataclass(frozen=True)
class Look:
    """How one variant is drawn everywhere."""

    color: str
    marker: str
    line: Any


def looks(variants: Iterable[object], baseline: str = "baseline") -> dict[Any, Look]:
    """A look for each variant, by its name: the same in every figure."""
    names = list(variants)
    found = by_name(names, baseline)
    return {
        name: Look(look.color, _MARKERS[look.marker], _LINES[look.line])
        for name in (baseline, *names)
        if (look := found[str(name)])
    }


def label(key: str) -> str:
    """Axis label with its unit; a dotted key stands for itself."""
    return AXIS.get(key, key)


def new_axes(
    width: float = 5.6, height: float = 3.6, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure in inches and its ``columns`` axes side by side, without pyplot's global state."""
    with mpl.rc_context(PRINT):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, without a date, so that equal figures are equal files."""
    with mpl.rc_context(PRINT):
        figure.savefig(path, metadata={"Software": None})
    return path


def log_axes(ax: Axes, which: str = "xy") -> Axes:
    """``ax`` with logarithmic axes and few round labels."""
    for name in which:
        ax.set(**{f"{name}scale": "log"})
        log_ticks(getattr(ax, f"{name}axis"))
    return ax


def log_ticks(axis: Axis, most: int = 6) -> None:
    """Few round labels on a logarithmic axis, also where it spans less than a decade."""
    low, high = sorted(axis.get_view_interval())
    if high / low < 4:
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    else:
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        for steps in ((1, 2, 3, 4, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
            ticks = [
                step * 10.0**decade
                for decade in decades
                for step in steps
                if low <= step * 10.0**decade <= high
            ]
            if len(ticks) <= most:
                break
        axis.set_major_locator(FixedLocator(ticks[:: max(1, len(ticks) // most)]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def number(value: float) -> str:
    """``1.85`` or ``3×10¹⁵`` (as mathtext)."""
    if value == 0 or 1e-3 < abs(value) < 9999.5:
        return f"{value:.4g}"
    exponent = int(np.floor(np.log10(abs(value)) + 1e-9))
    mantissa = value / 10.0**exponent
    return (
        rf"$10^{{{exponent}}}$"
        if abs(mantissa - 1) < 1e-6
        else rf"${mantissa:.3g}{{\times}}10^{{{exponent}}}$"
    )
