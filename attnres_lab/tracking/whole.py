"""Whether a store has taken everything of a sweep: then one that is run again costs nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnres_lab.runs.folder import RunFolder, read_json
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.tracking import sqlite
from attnres_lab.tracking.artifacts import stamp
from attnres_lab.tracking.store import experiment_name, file_of, tracking_uri

#: Tag of a parent run: what was in the folder when the store had taken everything of it.
WHOLE = "attnres.whole"


def is_whole(folder: Path, summary: Mapping[str, str]) -> bool:
    """Whether the embedded store took everything of this very folder of a sweep: then one that is
    run again costs a look at its files. False where that cannot be told so quickly.
    """
    path, id = file_of(tracking_uri()), SweepFolder(folder).facts().get("id")
    if path is None or id is None or not path.exists() or sqlite.damage(path):
        return False  # the mirror says so
    mark = mark_of(folder, summary_of(folder, summary))
    return sqlite.holds(path, experiment_name(), {"attnres.id": str(id), WHOLE: mark})


def summary_of(folder: Path, new: Mapping[str, str]) -> dict[str, Any]:
    """What the note says of the plan, by title: as it was told before, and what is new."""
    return dict((read_json(SweepFolder(folder).sent) or {}).get("summary", {})) | dict(new)


def mark_of(folder: Path, summary: Mapping[str, Any]) -> str:
    """Changes with the plan, the status of any trial, and what is said of them."""
    sweep = SweepFolder(folder)
    files = [sweep.plan_file]
    with contextlib.suppress(OSError):
        files += [RunFolder(path).status_file for path in sorted(sweep.trials.iterdir())]
    text = json.dumps([summary, [stamp(file) for file in files]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
