"""A sweep's trials in numbers, in a line, and as a table. Imports neither torch nor MLflow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, get_args

import yaml

from attnres_lab.runs.files import number
from attnres_lab.runs.folder import State
from attnres_lab.runs.progress import Progress
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep.forecast import NOTHING, Outlook, forecast

#: States that are counted, and those of them that the one line names.
COUNTED = (*get_args(State), "silent")
ORDER = (
    *("running", "silent", "failed", "diverged", "stopped"),
    *("scheduled", "pruned", "finished"),
)
GOAL = ("val/loss", "minimize")
NAMED = ("running", "silent", "failed", "diverged", "pruned", "stopped")


def summary(
    trials: Sequence[Progress],
    *,
    slots: int = 1,
    outlook: Outlook = NOTHING,
    goal: tuple[str, str] = GOAL,
    smallest: bool = False,
) -> dict[str, Any]:
    """Counts by state, device hours spent, the share of the whole sweep's time that is done, the
    seconds left if ``slots`` trials run at a time, the ``smallest`` or the largest first (None:
    nothing measured yet), and the best
    finished trial by ``goal``: a metric, and which way is better.
    """
    states = Counter(t.label.split(":")[0] for t in trials)
    done = sum(t.done for t in trials)
    spent = sum(number(t.row.get("device_seconds", t.row.get("seconds"))) or 0.0 for t in trials)
    metric, direction = goal
    found = [
        (value, t.entry)
        for t in trials
        if t.status.state == "finished" and not t.entry.tuning
        if (value := number(t.row.get(metric))) is not None and math.isfinite(value)
    ]
    ahead = forecast(trials, slots, outlook, smallest=smallest)
    facts: dict[str, Any] = {
        "trials": len(trials),
        "done": done,
        "pending": len(trials) - done,
        **{state: states.get(state, 0) for state in COUNTED},
        "imported": sum(bool(t.status.imported) for t in trials),
        "device_hours": spent / 3600,
        "share": ahead.share,
        "seconds_left": ahead.seconds_left,
        "best": None,
    }
    if found:
        value, entry = (max if direction == "maximize" else min)(found, key=lambda pair: pair[0])
        point = {"trial": entry.hash, "run": entry.run_name, "params": entry.params}
        facts["best"] = {"metric": metric, "value": value, **point}
    return facts


def goal_of(folder: SweepFolder) -> tuple[str, str]:
    """The first objective of a sweep that ran, by the YAML that it ran with."""
    try:
        given = _file(folder)["objective"]
        first = given[0] if isinstance(given, list) else given
        return str(first.get("metric", GOAL[0])), str(first.get("direction", GOAL[1]))
    except (KeyError, TypeError, AttributeError, IndexError):
        return GOAL


def smallest_first(folder: SweepFolder) -> bool:
    """Whether the YAML that a sweep ran with starts its smallest trials first."""
    return bool(_file(folder).get("order") == "smallest")


def _file(folder: SweepFolder) -> dict[str, Any]:
    try:
        found = yaml.safe_load(str(folder.facts().get("yaml", "")))
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else {}


def rank(trial: Progress) -> int:
    """The place of a trial's state in a table: what runs first, then what needs a look."""
    return ORDER.index(trial.label.split(":")[0])


def best_line(facts: dict[str, Any]) -> str:
    """The best trial so far; empty where there is none."""
    if not (best := facts["best"]):
        return ""
    point = f" [{show(best['params'])}]" if best["params"] else ""
    return f"best: {best['trial']} {best['run']}{point} {best['metric']} {best['value']:.4f}"


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


def table(trials: Sequence[Progress], metric: str = "val/loss") -> str:
    """A line for each trial."""
    rows = [("trial", "run", "state", "step", metric, "time", "params")]
    for t in trials:
        value, seconds = t.row.get(metric, ""), t.row.get("seconds")
        loss = f"{value:.4f}" if isinstance(value, float) else str(value)
        took = duration(seconds) if isinstance(seconds, int | float) else ""
        step = str(t.row.get("step", t.status.step or ""))
        e = t.entry
        rows.append((e.hash, e.run_name, t.label, step, loss, took, show(e.params)))
    return columns(rows)
