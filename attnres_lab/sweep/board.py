"""A sweep on a terminal: a table that fits the pane, what runs first; the best trial so far; a bar
by the time of the whole sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from attnres_lab.runs.progress import Progress
from attnres_lab.sweep.summary import best_line, headline, rank, table

STYLES = {
    "running": "cyan",
    "finished": "green",
    "failed": "bold red",
    "diverged": "magenta",
    "silent": "bold yellow",
    "stopped": "yellow",
    "pruned": "yellow",
    "scheduled": "dim",
}
#: Lines of a board that are no trials: the head of the table, the best trial, the bar, the next
#: prompt, and what is said of trials that do not fit.
OTHER_LINES = 5


def board(trials: Sequence[Progress], facts: dict[str, Any], metric: str, height: int) -> Group:
    """The trials that fit into ``height`` lines, in one line each, above the best one and the
    bar; ``facts`` are the ``summary`` of the whole sweep.
    """
    ordered = sorted(trials, key=rank)
    shown = ordered[: max(1, height - OTHER_LINES)]
    head, *lines = table(shown, metric).split("\n")
    parts: list[RenderableType] = [_line(head, "bold")]
    for trial, line in zip(shown, lines, strict=True):
        parts.append(_line(line, style_of(trial.label)))
    if len(ordered) > len(shown):
        parts.append(_line(f"and {len(ordered) - len(shown)} more", "dim"))
    if best := best_line(facts):
        parts.append(_line(best, "green"))
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=1.0, completed=facts["share"], width=24)
    grid.add_row(bar, _line(f"{facts['share']:.0%}, {headline(facts)}", ""))
    return Group(*parts, grid)


def style_of(label: str) -> str:
    """The colour of a state, of a failure with its kind too."""
    return STYLES.get(label.split(":")[0], "")


def _line(text: str, style: str) -> Text:
    """One that is cut where the pane ends."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
