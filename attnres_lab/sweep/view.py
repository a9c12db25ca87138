"""What ``sweep run`` shows: a live table with a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from attnres_lab.runs.files import number
from attnres_lab.runs.folder import Status
from attnres_lab.runs.progress import Progress, progress
from attnres_lab.runs.sweep import Entry, SweepFolder
from attnres_lab.sweep.board import board, style_of
from attnres_lab.sweep.forecast import NOTHING, Outlook
from attnres_lab.sweep.summary import best_line, duration, headline, show, smallest_first, summary


class Screen:
    """A line for each trial that ended; on a terminal also a table of what is running and a bar for
    the whole sweep, renewed each second. ``goal``: a metric, and which way is better.
    """

    def __init__(self, folder: SweepFolder, goal: tuple[str, str], slots: int) -> None:
        self.folder, self.goal, self.slots = folder, goal, slots
        self.outlook: Callable[[], Outlook] = lambda: NOTHING  # what is known of time beforehand
        self.console = Console(soft_wrap=True, highlight=False)
        self.live = (
            Live(console=self.console, refresh_per_second=2, transient=True)
            if self.console.is_terminal
            else None
        )
        self.due = 0.0

    def __enter__(self) -> Screen:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        """Take the board away, which is drawn anew under every line as it was last."""
        if self.live:
            self.live.stop()

    def say(self, text: str | Text) -> None:
        self.console.print(text, markup=False)

    def ended(self, entry: Entry, status: Status, result: dict[str, Any]) -> None:
        value = result.get(self.goal[0])
        facts = [f"{self.goal[0]} {value:.4f}"] if isinstance(value, float) else []
        seconds = number(result.get("seconds"))
        facts += [duration(seconds)] if seconds is not None else []
        facts += [f"({status.failure}) {status.message}"] if status.state == "failed" else []
        rest = [entry.hash, entry.run_name, f"[{show(entry.params)}]", *facts]
        state = (f"{status.state:9}", style_of(status.state))
        self.say(Text.assemble(state, f" {' '.join(rest)}"))

    def tick(self) -> None:
        """Renew the table each second, elsewhere say a line a minute; a look at many trials takes
        at most a hundredth of our time.
        """
        if (started := time.monotonic()) < self.due:
            return
        trials = progress(self.folder)
        facts = self._facts(trials)
        if self.live:
            running = [t for t in trials if t.status.state == "running"]
            height = self.console.size.height
            self.live.update(board(running, facts, "train/loss", height))
        elif self.due:
            self.say(headline(facts))
        now = time.monotonic()
        self.due = now + max(1.0 if self.live else 60.0, 100 * (now - started))

    def _facts(self, trials: list[Progress]) -> dict[str, Any]:
        known, first = self.outlook(), smallest_first(self.folder)
        return summary(trials, slots=self.slots, outlook=known, goal=self.goal, smallest=first)

    def final(self, halted: str = "") -> None:
        """The last line, the best trial, what failed, and where to look next; ``halted``: the stop
        rule that keeps the rest from starting.
        """
        self._close()
        trials = progress(self.folder)
        facts = self._facts(trials)
        self.say(headline(facts))
        if best := best_line(facts):
            self.say(Text(best, style="green"))
        failed = [t for t in trials if t.status.state == "failed"]
        for t in failed[:10]:
            why = f"({t.status.failure}) {t.status.message}"
            state = ("failed   ", style_of("failed"))
            self.say(Text.assemble(state, f" {t.entry.hash} {t.entry.run_name}: {why}"))
        if failed:
            self.say("what they printed: attnres sweep logs TRIAL; a later run tries them again")
        if halted:
            self.say(f"stop.{halted} is reached; to go on raise it, and run the same command")
        if facts["pending"] and not halted:
            self.say("go on: the same command; what is done is not run again")
        else:
            name = self.folder.path.name
            self.say(f"next: attnres report {name}; attnres ui; attnres sweep status {name}")
