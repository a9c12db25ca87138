"""A sweep's trials in numbers, in a line, and as a table. Imports neither torch nor MLflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, get_args

from attnres_lab.runs.folder import DONE, State
from attnres_lab.runs.progress import Progress
from attnres_lab.sweep.rules import number

#: States that are counted, and those of them that the one line names.
COUNTED = (*get_args(State), "silent")
NAMED = ("running", "silent", "failed", "diverged", "pruned", "stopped")


def summary(trials: list[Progress], *, slots: int = 1) -> dict[str, Any]:
    """Counts by state, device hours spent, seconds left if ``slots`` trials run at a time (None:
    nothing measured yet).
    """
    states = Counter(t.label.split(":")[0] for t in trials)
    done = [t for t in trials if t.status.state in DONE]
    left = [t for t in trials if t.status.state not in DONE]
    spent = sum(number(t.row.get("device_seconds", t.row.get("seconds"))) or 0.0 for t in trials)
    timed = [t for t in done if number(t.row.get("seconds")) and t.entry.flops]
    seconds_left = None if left else 0.0
    if left and timed and all(t.entry.flops for t in left):
        seconds = sum(float(t.row["seconds"]) for t in timed)
        rate = sum(t.entry.flops or 0.0 for t in timed) / seconds
        to_go = ((t.entry.flops or 0.0) - (number(t.row.get("flops")) or 0.0) for t in left)
        seconds_left = sum(max(0.0, flops) for flops in to_go) / rate / max(1, slots)
    return {
        "trials": len(trials),
        "done": len(done),
        "pending": len(left),
        **{state: states.get(state, 0) for state in COUNTED},
        "imported": sum(bool(t.status.imported) for t in trials),
        "device_hours": spent / 3600,
        "seconds_left": seconds_left,
    }


def headline(facts: dict[str, Any]) -> str:
    """The summary in one line."""
    parts = [f"{facts['done']}/{facts['trials']} done"]
    parts[0] += f" ({facts['imported']} imported)" if facts["imported"] else ""
    parts += [f"{facts[state]} {state}" for state in NAMED if facts[state]]
    parts.append(f"{facts['device_hours']:.2g} device-hours")
    if facts["seconds_left"]:
        parts.append(f"about {duration(facts['seconds_left'])} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """``90`` as ``0:01:30``."""
    return str(timedelta(seconds=round(seconds)))


def show(params: Mapping[str, Any]) -> str:
    """A point in a line."""
    texts = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in params.items()}
    return " ".join(f"{key}={text}" for key, text in texts.items())


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as aligned columns: thousands of them in a moment, and whole where no terminal cuts
    them.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def table(trials: list[Progress], metric: str = "val/loss") -> str:
    """A line for each trial."""
    rows = [("trial", "run", "state", "step", metric, "time", "params")]
    for t in trials:
        value, seconds = t.row.get(metric, t.row.get("train/loss", "")), t.row.get("seconds")
        loss = f"{value:.4f}" if isinstance(value, float) else str(value)
        took = duration(seconds) if isinstance(seconds, int | float) else ""
        step = str(t.row.get("step", t.status.step or ""))
        e = t.entry
        rows.append((e.hash, e.run_name, t.label, step, loss, took, show(e.params)))
    return columns(rows)
