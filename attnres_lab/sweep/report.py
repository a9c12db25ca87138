"""``status`` and ``logs``: answers from the folders alone."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder, read_json
from attnres_lab.runs.paths import runs_folder
from attnres_lab.runs.progress import Progress, progress
from attnres_lab.runs.secrets import redact
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep.board import board, style_of
from attnres_lab.sweep.summary import (
    best_line,
    goal_of,
    headline,
    rank,
    smallest_first,
    summary,
    table,
)

#: Lines that a terminal gets; longer lists are cut there, and whole elsewhere.
SHOWN = 200


def print_status(folder: SweepFolder, *, as_json: bool, watch: bool, slots: int = 0) -> None:
    """The state of a sweep and of its trials, of which ``slots`` run at a time (0: as many as are
    running). Raises UserError for a sweep that never ran.
    """
    console = Console(soft_wrap=True, highlight=False)
    goal, fits = goal_of(folder), watch and console.is_terminal and not as_json
    with Live(console=console, auto_refresh=False) if fits else nullcontext() as live:
        while True:
            trials = progress(folder)
            if not trials:
                raise UserError(
                    f"{folder.path}: nothing has run yet; start it with: attnres sweep run, or "
                    "look from the project where it ran (or set ATTNRES_RUNS)"
                )
            holder = folder.holder()
            at_once = slots or max(1, sum(t.label == "running" for t in trials))
            first = smallest_first(folder)
            facts = summary(trials, slots=at_once, goal=goal, smallest=first)
            if live:
                live.update(board(trials, facts, goal[0], console.size.height), refresh=True)
            elif as_json:
                rows = [_as_json(t) for t in trials]
                stale = [run.path.name for run in folder.stale()]
                print(json.dumps({**facts, "holder": holder, "trials": rows, "stale": stale}))
            else:
                _print_table(console, trials, facts, goal[0])
                _print_stale(console, folder)
                where = f"run by process {holder['pid']} on {holder['host']}" if holder else ""
                print(where or "not running now")
            if not watch or not facts["pending"] or (holder is None and not facts["running"]):
                return
            time.sleep(2)


def _print_table(
    console: Console, trials: list[Progress], facts: dict[str, Any], metric: str
) -> None:
    """What runs first; on a terminal in colour, and a long list cut."""
    ordered = sorted(trials, key=rank)
    shown = ordered[: SHOWN if console.is_terminal else None]
    head, *lines = table(shown, metric).split("\n")
    console.print(Text(head, style="bold"))
    for trial, line in zip(shown, lines, strict=True):
        console.print(Text(line, style=style_of(trial.label)))
    if len(ordered) > len(shown):
        console.print(f"and {len(ordered) - len(shown)} more")
    if best := best_line(facts):
        console.print(Text(best, style="green"))
    console.print(headline(facts), markup=False)


def _print_stale(console: Console, folder: SweepFolder) -> None:
    """Runs that an edit left outside the plan: named, so that nobody takes them for results."""
    if not (runs := folder.stale()):
        return
    name = folder.path.name
    console.print(
        f"{len(runs)} stale, no part of the plan and counted nowhere; "
        f"attnres runs list --filter sweep={name} --filter stale=true shows all",
        markup=False,
    )
    for run in runs[:10]:
        label = (read_json(run.environment) or {}).get("run_name", "")
        console.print(f"{run.path.name}  {label}  {run.status().state}: stale", style="dim")


def _as_json(trial: Progress) -> dict[str, Any]:
    return {
        **asdict(trial.entry),
        "state": trial.label,
        "status": asdict(trial.status),
        "metrics": trial.row,
        "heartbeat": trial.beat,
    }


def print_log(prefix: str) -> None:
    """What the process of the trial whose hash begins so wrote, in whatever sweep. Raises UserError
    for none or several.
    """
    found = sorted(runs_folder().glob(f"sweeps/*/trials/{prefix}*")) if prefix.isalnum() else []
    if len(found) != 1:
        raise UserError(f"{prefix}: {len(found)} trials begin so; see attnres sweep status")
    run = RunFolder(found[0])
    text = run.log.read_text(errors="replace") if run.log.exists() else f"{run.path}: no log yet"
    print(redact(text), end="")
