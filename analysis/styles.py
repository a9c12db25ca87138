"""How figures look: on a screen and in reports, or in a paper's column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

#: Settings of matplotlib for reports: one panel, in inches.
PRINT: Any = {
    "figure.figsize": (4.8, 3.5),
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
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # letters stay text, which journals ask for
    "svg.fonttype": "none",
}
#: For a column of 3.25 inches: letters of 7 to 8 points at that width, and no titles, for a paper
#: has captions.
PAPER: Any = PRINT | {
    "figure.figsize": (3.25, 2.4),
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.handlelength": 1.8,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "savefig.dpi": 300,
}
STYLES = {"screen": PRINT, "paper": PAPER}
_active: ContextVar[str] = ContextVar("style", default="")


@contextmanager
def style(name: str = "paper", *, width: float | None = None) -> Iterator[None]:
    """Figures made inside look as in a paper (``screen``: as in a report); ``width`` is that of a
    figure in inches, in the same proportions: 6.75 spans both columns.

    Raises ValueError for an unknown name or a width that is not above 0.
    """
    import matplotlib as mpl

    if name not in STYLES:
        raise ValueError(f"there is no style {name!r}; one of {', '.join(STYLES)}")
    if width is not None and not width > 0:
        raise ValueError(f"width is {width}: give inches, above 0")
    across, up = STYLES[name]["figure.figsize"]
    size = (across, up) if width is None else (width, width * up / across)
    before = _active.set(name)
    try:
        with mpl.rc_context(STYLES[name] | {"figure.figsize": size}):
            yield
    finally:
        _active.reset(before)


def current() -> AbstractContextManager[None]:
    """The style around the caller, where there is one, else that of reports."""
    return nullcontext() if _active.get() else style("screen")


def titled() -> bool:
    """Whether figures have titles."""
    return _active.get() != "paper"
