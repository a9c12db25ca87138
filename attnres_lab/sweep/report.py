"""``status``, ``logs`` and ``export``: answers from the folders alone."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder
from attnres_lab.runs.paths import runs_folder
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep.survey import headline, summary, survey, table

#: Lines that a terminal gets; longer lists are cut there, and whole elsewhere.
SHOWN = 200


def print_status(folder: SweepFolder, *, as_json: bool, watch: bool) -> None:
    """The state of a sweep and of its trials. Raises UserError for a sweep that never ran."""
    terminal = sys.stdout.isatty()
    while True:
        seen = survey(folder)
        if not seen:
            raise UserError(f"{folder.path}: nothing has run yet; start it with: attnres sweep run")
        holder = folder.holder()
        facts = summary(seen, slots=max(1, sum(s.label == "running" for s in seen)))
        if as_json:
            trials = [
                {
                    **asdict(s.entry),
                    "state": s.label,
                    "status": asdict(s.status),
                    "metrics": s.row,
                    "heartbeat": s.beat,
                }
                for s in seen
            ]
            print(json.dumps({**facts, "holder": holder, "trials": trials}))
        else:
            if watch and terminal:
                print("\033[H\033[2J", end="")
            print(
                table(
                    seen
                    if len(seen) <= SHOWN or not terminal
                    else [s for s in seen if s.label == "running"]
                )
            )
            print(headline(facts))
            print(
                f"run by process {holder['pid']} on {holder['host']}"
                if holder
                else "not running now"
            )
        if not watch or not facts["owed"] or (holder is None and not facts["running"]):
            return
        time.sleep(2)


def print_log(prefix: str) -> None:
    """What the process of the trial whose hash begins so wrote, in whatever sweep. Raises UserError
    for none or several.
    """
    found = sorted(runs_folder().glob(f"sweeps/*/trials/{prefix}*")) if prefix.isalnum() else []
    if len(found) != 1:
        raise UserError(f"{prefix}: {len(found)} trials begin so; see attnres sweep status")
    run = RunFolder(found[0])
    print(
        run.log.read_text(errors="replace") if run.log.exists() else f"{run.path}: no log yet",
        end="",
    )


def export(folder: SweepFolder, to: Path) -> list[Path]:
    """Everything known about every trial, a row each, as CSV and Parquet."""
    import pandas as pd

    rows = []
    for s in survey(folder):
        entry = {k: v for k, v in asdict(s.entry).items() if k not in ("params", "flops", "tokens")}
        planned = {"planned_flops": s.entry.flops, "planned_tokens": s.entry.tokens}
        rows.append(
            {
                **entry,
                **s.entry.params,
                **planned,
                "state": s.status.state,
                "failure": s.status.failure,
                "message": s.status.message,
                **s.row,
            }
        )
    if not rows:
        raise UserError(f"{folder.path}: nothing has run yet; start it with: attnres sweep run")
    frame = pd.DataFrame(rows)
    for column in frame.columns:  # a column of one type, as Parquet wants
        if frame[column].map(type).nunique() > 1 and not pd.api.types.is_numeric_dtype(
            frame[column]
        ):
            frame[column] = frame[column].map(lambda v: None if v is None else str(v))
    to.mkdir(parents=True, exist_ok=True)
    paths = [to / "trials.csv", to / "trials.parquet"]
    frame.to_csv(paths[0], index=False)
    frame.to_parquet(paths[1], index=False)
    return paths
