"""What a sweep's folder says about its trials. Imports neither torch nor MLflow."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from attnres_lab.runs.folder import DONE, Status, read_json
from attnres_lab.runs.sweep import Entry, SweepFolder, last_row
from attnres_lab.sweep.rules import number

#: Seconds without a heartbeat after which a running trial is called silent.
SILENT = 30.0


@dataclass(frozen=True)
class Seen:
    """A trial as its folder shows it: ``row`` is the result of a finished trial, else the newest
    metrics.
    """

    entry: Entry
    status: Status
    row: dict[str, Any]
    beat: float | None

    @property
    def label(self) -> str:
        """The state in a word; a failure with its kind."""
        if self.status.state == "running" and (
            self.beat is None or time.time() - self.beat > SILENT
        ):
            return "silent"
        return (
            f"failed: {self.status.failure}" if self.status.state == "failed" else self.status.state
        )


def survey(folder: SweepFolder) -> list[Seen]:
    """Every planned trial."""
    seen = []
    for entry in folder.plan():
        run = folder.trial(entry.hash)
        status = run.status()
        result = read_json(run.result) if status.state in DONE else None
        seen.append(
            Seen(entry, status, result or last_row(run), None if result else run.last_beat())
        )
    return seen


def summary(seen: list[Seen], *, slots: int = 1) -> dict[str, Any]:
    """Counts by state, device hours spent, seconds left if ``slots`` trials run at a time (None:
    nothing measured yet).
    """
    states = Counter(s.label.split(":")[0] for s in seen)
    done = [s for s in seen if s.status.state in DONE]
    spent = sum((number(s.row.get("device_seconds", s.row.get("seconds"))) or 0.0) for s in seen)
    worked = [s for s in done if number(s.row.get("seconds")) and s.entry.flops]
    left = [s for s in seen if s.status.state not in DONE]
    seconds_left = 0.0 if not left else None
    if left and worked and all(s.entry.flops for s in left):
        rate = sum(s.entry.flops or 0 for s in worked) / sum(
            float(s.row["seconds"]) for s in worked
        )
        share = [
            1 - min(1.0, (number(s.row.get("flops")) or 0.0) / (s.entry.flops or 1.0)) for s in left
        ]
        seconds_left = (
            sum((s.entry.flops or 0) * f for s, f in zip(left, share, strict=True))
            / rate
            / max(1, slots)
        )
    return {
        "trials": len(seen),
        "done": len(done),
        "owed": len(left),
        **{
            state: states.get(state, 0)
            for state in (
                "running",
                "silent",
                "finished",
                "diverged",
                "pruned",
                "failed",
                "stopped",
                "scheduled",
            )
        },
        "device_hours": spent / 3600,
        "seconds_left": seconds_left,
    }


def headline(facts: dict[str, Any]) -> str:
    """The summary in one line."""
    parts = [f"{facts['done']}/{facts['trials']} done"]
    parts += [
        f"{facts[s]} {s}"
        for s in ("running", "silent", "failed", "diverged", "pruned", "stopped")
        if facts[s]
    ]
    parts.append(f"{facts['device_hours']:.2g} device-hours")
    if facts["seconds_left"]:
        parts.append(f"about {duration(facts['seconds_left'])} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """``90`` as ``0:01:30``."""
    return str(timedelta(seconds=round(seconds)))


def show(params: Mapping[str, Any]) -> str:
    """A point in a line."""
    return " ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in params.items()
    )


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as aligned columns: thousands of them in a moment, and whole where no terminal cuts
    them.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def table(seen: list[Seen], metric: str = "val/loss") -> str:
    """A line for each trial."""
    rows = [("trial", "run", "state", "step", metric, "time", "params")]
    for s in seen:
        value, seconds = s.row.get(metric, s.row.get("train/loss", "")), s.row.get("seconds")
        loss = f"{value:.4f}" if isinstance(value, float) else str(value)
        took = duration(seconds) if isinstance(seconds, int | float) else ""
        rows.append(
            (
                s.entry.hash,
                s.entry.run_name,
                s.label,
                str(s.row.get("step", s.status.step or "")),
                loss,
                took,
                show(s.entry.params),
            )
        )
    return columns(rows)
