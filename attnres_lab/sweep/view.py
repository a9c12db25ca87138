"""What ``sweep run`` shows: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from attnres_lab.runs.folder import Status
from attnres_lab.runs.progress import progress
from attnres_lab.runs.sweep import Entry, SweepFolder
from attnres_lab.sweep.rules import number
from attnres_lab.sweep.summary import duration, headline, show, summary, table


class Screen:
    """A line for each trial that ended; on a terminal also a table of what is running, renewed each
    second.
    """

    def __init__(self, folder: SweepFolder, metric: str, slots: int) -> None:
        self.folder, self.metric, self.slots = folder, metric, slots
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
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def ended(self, entry: Entry, status: Status, result: dict[str, Any]) -> None:
        value = result.get(self.metric)
        facts = [f"{self.metric} {value:.4f}"] if isinstance(value, float) else []
        seconds = number(result.get("seconds"))
        facts += [duration(seconds)] if seconds is not None else []
        facts += [f"({status.failure}) {status.message}"] if status.state == "failed" else []
        point = f"[{show(entry.params)}]"
        self.say(" ".join([f"{status.state:9}", entry.hash, entry.run_name, point, *facts]))

    def tick(self) -> None:
        """Renew the table each second, elsewhere say a line a minute; a look at many trials takes
        at most a hundredth of our time.
        """
        if (started := time.time()) < self.due:
            return
        trials = progress(self.folder)
        line = headline(summary(trials, slots=self.slots))
        if self.live:
            running = [t for t in trials if t.status.state == "running"]
            self.live.update(Text(f"{line}\n{table(running, 'train/loss')}"))
        elif self.due:
            self.say(line)
        self.due = time.time() + max(1.0 if self.live else 60.0, 100 * (time.time() - started))

    def final(self) -> None:
        """The last line, and what failed."""
        trials = progress(self.folder)
        self.say(headline(summary(trials, slots=self.slots)))
        failed = [t for t in trials if t.status.state == "failed"]
        for t in failed[:10]:
            why = f"({t.status.failure}) {t.status.message}"
            self.say(f"failed    {t.entry.hash} {t.entry.run_name}: {why}")
        if failed:
            self.say("what they printed: attnres sweep logs TRIAL; a later run tries them again")
