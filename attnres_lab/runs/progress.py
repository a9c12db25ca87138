"""What a sweep's folder says about each planned trial, while it runs or not."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from attnres_lab.runs.folder import DONE, RunFolder, Status, read_json
from attnres_lab.runs.sweep import SILENT, Entry, SweepFolder


@dataclass(frozen=True)
class Progress:
    """A trial as its folder shows it: ``row`` is the result of a finished trial, else the newest
    metrics; ``beat`` the unix time of the last sign of life of one that has no result, ``begun``
    that of its last start.
    """

    entry: Entry
    status: Status
    row: dict[str, Any]
    beat: float | None
    begun: float | None = None

    @property
    def done(self) -> bool:
        """Whether it is a result."""
        return self.status.state in DONE

    @property
    def label(self) -> str:
        """The state in a word, ``silent`` where it is to run and gives no sign of life; a failure
        with its kind, and a result that was not come by here marked.
        """
        state, failure = self.status.state, self.status.failure
        if state == "running" and (self.beat is None or time.time() - self.beat > SILENT):
            return "silent"
        if self.status.imported:
            return f"{state}: imported"
        return f"failed: {failure}" if state == "failed" else state


def progress(folder: SweepFolder) -> list[Progress]:
    """Every planned trial, in the order of the plan."""
    found = []
    for entry in folder.plan():
        run = folder.trial(entry.hash)
        status = run.status()
        result = read_json(run.result) if status.state in DONE else None
        beat = None if result else run.last_beat()
        begun = None if status.state == "scheduled" else _begun(run)
        found.append(Progress(entry, status, result or run.last_row(), beat, begun))
    return found


def _begun(run: RunFolder) -> float | None:
    """Whoever starts a trial writes its config, or touches it."""
    try:
        return run.config.stat().st_mtime
    except OSError:
        return None
