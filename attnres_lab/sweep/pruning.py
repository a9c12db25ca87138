"""Ends hopeless points early: on the steps of a point's first seed, or over its seeds."""

from __future__ import annotations

from collections.abc import Iterable

from attnres_lab.runs.rows import RowReader
from attnres_lab.runs.sweep import Entry, SweepFolder
from attnres_lab.sweep.spec import SweepSpec
from attnres_lab.sweep.study import Study


class Pruning:
    """Feeds the study's pruner. With one, the seeds of a point run one after the other: the later
    ones only if the point has not been given up.
    """

    def __init__(self, spec: SweepSpec, study: Study, folder: SweepFolder) -> None:
        self.study, self.folder = study, folder
        self.on = spec.pruner is not None
        self.over_seeds = spec.pruner is not None and spec.pruner.name.lower() == "wilcoxon"
        self.metric = spec.pruner.metric if spec.pruner else ""
        self.readers: dict[str, RowReader] = {}  # by trial

    def ready(self, owed: list[str], seeds: int) -> list[str]:
        """Which of a point's owed trials may run now."""
        waits = self.on and (self.over_seeds or len(owed) == seeds)
        return owed[:1] if waits else owed

    def hopeless(self, scouts: Iterable[Entry]) -> list[Entry]:
        """The running first seeds that the pruner gives up, by the rows they logged since the last
        look.
        """
        if not self.on or self.over_seeds:
            return []
        return [
            entry
            for entry in scouts
            if any(self.study.report(entry.point, *row) for row in self._new_rows(entry))
        ]

    def seed_done(self, entry: Entry, index: int, value: float) -> bool:
        """Report a finished seed; True if the point's other seeds need not run."""
        return self.over_seeds and self.study.report(entry.point, index, value)

    def _new_rows(self, entry: Entry) -> list[tuple[int, float]]:
        metrics = self.folder.trial(entry.hash).metrics
        reader = self.readers.setdefault(entry.hash, RowReader(metrics))
        rows = [row for row in reader.new() if self.metric in row]
        return [(int(row["step"]), float(row[self.metric])) for row in rows]
