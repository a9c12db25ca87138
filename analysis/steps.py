"""Seconds of runs priced by steps that were timed beside each other, where a sweep has them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from attnres_lab.runs import SweepFolder
from attnres_lab.runs.folder import read_json


def priced(runs: pd.DataFrame, folder: Path | None) -> tuple[pd.DataFrame, str]:
    """The runs with ``seconds`` as steps times the seconds of a step of their variant and size, by
    ``step_seconds.json`` of the sweep's folder (``attnres bench sweep``), and where those are from.

    As they are, with an empty text, where there is no such file or it lacks a finished run.
    """
    found = read_json(SweepFolder(folder).timed) if folder else None
    if not found or not {"trial", "tokens", "seconds"} <= set(runs):
        return runs, ""
    per_token = {
        trial: row["step_seconds"] / row["tokens_per_step"]
        for row in found["rows"]
        for trial in row["trials"]
    }
    seconds = runs["tokens"] * runs["trial"].map(per_token).astype(float)
    done = runs["status"] == "finished" if "status" in runs else runs["seconds"].notna()
    if seconds[done].isna().any():
        return runs, ""
    source = (
        f"each variant's step timed in turn with the others' on {found['device']}, "
        f"{found['date']}, median of {found['repeats']}"
    )
    return runs.assign(seconds=seconds.fillna(runs["seconds"])), source
