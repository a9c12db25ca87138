"""``status``, ``logs`` and ``export``: answers from the folders alone."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Any

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder
from attnres_lab.runs.paths import runs_folder
from attnres_lab.runs.progress import Progress, progress
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep.summary import headline, summary, table

#: Lines that a terminal gets; longer lists are cut there, and whole elsewhere.
SHOWN = 200


def print_status(folder: SweepFolder, *, as_json: bool, watch: bool, slots: int = 0) -> None:
    """The state of a sweep and of its trials, of which ``slots`` run at a time (0: as many as are
    running). Raises UserError for a sweep that never ran.
    """
    terminal = sys.stdout.isatty()
    while True:
        trials = progress(folder)
        if not trials:
            raise UserError(f"{folder.path}: nothing has run yet; start it with: attnres sweep run")
        holder = folder.holder()
        facts = summary(trials, slots=slots or max(1, sum(t.label == "running" for t in trials)))
        if as_json:
            print(json.dumps({**facts, "holder": holder, "trials": [_as_json(t) for t in trials]}))
        else:
            if watch and terminal:
                print("\033[H\033[2J", end="")
            whole = len(trials) <= SHOWN or not terminal
            print(table(trials if whole else [t for t in trials if t.label == "running"]))
            print(headline(facts))
            where = f"run by process {holder['pid']} on {holder['host']}" if holder else ""
            print(where or "not running now")
        if not watch or not facts["pending"] or (holder is None and not facts["running"]):
            return
        time.sleep(2)


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
    print(text, end="")
