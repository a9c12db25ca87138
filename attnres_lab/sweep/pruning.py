"""Feeds a sweep's pruner, on the steps of a point's first seed or over its seeds."""

from __future__ import annotations

from typing import Literal

from attnres_lab.runs.rows import RowReader
from attnres_lab.runs.sweep import Entry, SweepFolder
from attnres_lab.sweep.optuna_study import OptunaStudy
from attnres_lab.sweep.spec import SweepSpec


class Pruning:
    """With a pruner, the seeds of a point take turns: the later ones run only if the point has not
    been given up.
    """

    def __init__(self, spec: SweepSpec, study: OptunaStudy, folder: SweepFolder) -> None:
        self.study, self.folder = study, folder
        self.on = spec.pruner is not None
        self.turns: Literal["", "first", "each"] = ""
        if spec.pruner:
            self.turns = "each" if spec.pruner.name.lower() == "wilcoxon" else "first"
        self.metric = spec.pruner.metric if spec.pruner else ""
        self.readers: dict[str, RowReader] = {}  # by trial

    def gives_up(self, entry: Entry) -> bool:
        """Report the rows that a point's first seed logged since the last look; True if the pruner
        gives the point up; False where it judges by whole seeds.
        """
        if self.turns != "first":
            return False
        reader = self.readers.setdefault(
            entry.hash, RowReader(self.folder.trial(entry.hash).metrics)
        )
        rows = [row for row in reader.new() if self.metric in row]
        return any(
            self.study.report(entry.point, int(row["step"]), float(row[self.metric]))
            for row in rows
        )
