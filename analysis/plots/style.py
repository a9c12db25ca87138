"""One look for all figures: readable in print, and for colour-blind readers by colour, marker and
line alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, NullLocator

from analysis.styles import current, titled
from attnres_lab.runs.looks import looks as by_name

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

    @property
    def drawn(self) -> dict[str, Any]:
        """Keywords of matplotlib for its line."""
        return {"color": self.color, "linestyle": self.line, "marker": self.marker}


def looks(variants: Iterable[object], baseline: str = "baseline") -> dict[Any, Look]:
    """A look for each variant, by its name: the same in every figure."""
    names = list(variants)
    found = by_name(names, baseline)
    return {
        name: Look(look.color, _MARKERS[look.marker], _line(look.line))
        for name in (baseline, *names)
        if (look := found[str(name)])
    }


def _line(number: int) -> Any:
    """One of the four, then dashes that grow with the number."""
    if number < len(_LINES):
        return _LINES[number]
    return (0, (1 + number % 5, 1, 1, 1 + number // 5))


def label(key: str) -> str:
    """Axis label with its unit; a dotted key stands for itself."""
    return AXIS.get(key, key)


def new_axes(
    width: float | None = None, height: float | None = None, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure in inches, by default of the size of the style, and its ``columns`` axes side by
    side, without pyplot's global state.
    """
    with current():
        across, up = mpl.rcParams["figure.figsize"]
        figure = Figure(figsize=(width or across, height or up), layout="constrained")
        return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def save(figure: Figure, path: Path) -> Path:
    """Write ``path``, and the same as PDF beside it; without a date, so that equal figures are
    equal files.
    """
    with current():
        figure.savefig(path, metadata={"Software": None})
        figure.set_layout_engine("none")  # it is laid out now
        figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    return path


def heading(ax: Axes, title: str) -> None:
    """A title, where figures have them."""
    if title and titled():
        ax.set_title(title)


def legend(ax: Axes, title: str | None = None) -> None:
    """Where the data leave room; beside the axes for more than six names."""
    many = len(ax.get_legend_handles_labels()[1]) > 6
    place: Any = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if many else {}
    ax.legend(title=title, **place)


def band(ax: Axes, x: Any, low: Any, high: Any, color: str, among: int) -> None:
    """An interval behind the data: its limits as thin lines, and a fill so light that ``among`` of
    them over each other leave what lies below to be seen. Where it is wider than usual it is cut
    by the axes, which are for the data.
    """
    before = ax.dataLim.frozen()
    ax.fill_between(x, low, high, color=color, alpha=0.3 / (among + 2), linewidth=0, zorder=1)
    for edge in (low, high):
        ax.plot(x, edge, color=color, alpha=0.5, linewidth=0.5, zorder=1)
    ax.dataLim.set(before)
    corners = np.column_stack([[np.min(x), np.max(x)], [np.median(low), np.median(high)]])
    ax.update_datalim(corners)


def same_limits(axes: Sequence[Axes], which: str) -> None:
    """One range for an axis of several panels that are to be compared."""
    views = [getattr(ax, f"get_{which}lim")() for ax in axes]
    for ax in axes:
        ax.set(**{f"{which}lim": (min(v[0] for v in views), max(v[1] for v in views))})


def log_axes(ax: Axes, which: str = "xy") -> Axes:
    """``ax`` with logarithmic axes and few round labels."""
    for name in which:
        ax.set(**{f"{name}scale": "log"})
        log_ticks(getattr(ax, f"{name}axis"))
    return ax


def log_ticks(axis: Axis) -> None:
    """Few round labels on a logarithmic axis, also where it spans less than a decade; as many as
    have room.
    """
    axis.set_major_locator(LogTicks())
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


class LogTicks(Locator):
    """Round values, as many (at most ``most``) as have room for their labels."""

    most = 6

    def __call__(self) -> Any:
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Those within the view whose labels do not touch."""
        low, high = sorted((vmin, vmax))
        if not 0 < low < high:
            return np.array([low])
        choices = [t for t in _choices(low, high, self.most) if 2 <= len(t) <= self.most]
        fitting = (t for t in choices if self._fit(t, low, high))
        return np.array(next(fitting, choices[-1] if choices else [low, high]))

    def _fit(self, ticks: Sequence[float], low: float, high: float) -> bool:
        """Whether there is a gap between each two labels, by the sizes that they will have."""
        axis: Any = self.axis
        box = axis.axes.get_window_extent()
        upright = axis.axis_name == "y"
        length = (box.height if upright else box.width) * 72 / axis.axes.figure.dpi
        size = FontProperties(
            size=mpl.rcParams["ytick.labelsize" if upright else "xtick.labelsize"]
        )
        points = size.get_size_in_points()
        places = np.log(np.array(ticks) / low) / np.log(high / low) * length
        wide = [points * (1.2 if upright else 0.65 * _letters(number(t))) for t in ticks]
        gaps = np.diff(places) - (np.array(wide[1:]) + wide[:-1]) / 2
        return bool((gaps > 0.4 * points).all())


def _choices(low: float, high: float, most: int) -> Iterator[list[float]]:
    """Round values within the view, many first."""

    def inside(values: Iterable[float]) -> list[float]:
        return [float(v) for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]

    if high / low < 4:
        for count in range(most, 1, -1):
            yield inside(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
        return
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1, 2, 3, 4, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        yield inside(step * 10.0**decade for decade in decades for step in steps)
    tens = inside(10.0**decade for decade in decades)
    for step in range(2, len(tens)):
        yield tens[::step]


def _letters(text: str) -> float:
    """Width of a label of ``number`` in letters."""
    plain, _, power = text.replace(r"{\times}", "x").strip("$").partition("^")
    return len(plain) + 0.7 * len(power.strip("{}"))


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
