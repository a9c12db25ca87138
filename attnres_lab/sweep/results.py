"""What trials came to: how each ended, its objectives, the record of its point, and what follows
for the others, stop rules and pruning; and how the sweep ended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from optuna.trial import TrialState

from attnres_lab.errors import nearest
from attnres_lab.runs.failures import of_exit
from attnres_lab.runs.files import number
from attnres_lab.runs.folder import Status, read_json
from attnres_lab.runs.rows import RowReader
from attnres_lab.runs.sweep import Entry, SweepFolder
from attnres_lab.sweep import scoring
from attnres_lab.sweep.launchers import Ended
from attnres_lab.sweep.optuna_study import OptunaStudy
from attnres_lab.sweep.schema import SweepSpec
from attnres_lab.sweep.trials import Trial, misspent
from attnres_lab.sweep.view import Screen


@dataclass(frozen=True)
class Outcome:
    """How a sweep run ended, in trials."""

    done: int
    failed: int
    pending: int
    interrupted: bool
    halted: str = ""  # the stop rule that was reached

    @property
    def exit_code(self) -> int:
        """0 all done or a stop rule reached, 1 some failed or pending, 130 interrupted."""
        incomplete = self.failed or (self.pending and not self.halted)
        return 130 if self.interrupted else 1 if incomplete else 0


class Rules:
    """Counts what finished; ``reached`` names the first rule that is reached."""

    def __init__(self, spec: SweepSpec) -> None:
        self.stop = spec.stop
        self.sign = 1.0 if spec.objectives[0].direction == "minimize" else -1.0
        self.trials, self.hours, self.flops = 0, 0.0, 0.0
        self.best, self.idle = float("inf"), 0
        self.reached = ""

    def add(self, result: Mapping[str, Any]) -> bool:
        """Count a finished trial; True if a rule is reached by it."""
        self.trials += 1
        self.hours += (number(result.get("device_seconds")) or 0.0) / 3600
        self.flops += number(result.get("flops")) or 0.0
        return self._check()

    def point(self, value: float | None) -> None:
        """Count a newly finished point by its first objective, where it has one."""
        if value is None:
            return
        better = self.sign * value < self.best
        self.best, self.idle = (self.sign * value, 0) if better else (self.best, self.idle + 1)
        self._check()

    def _check(self) -> bool:
        before = self.reached
        counted = {
            "trials": self.trials,
            "device_hours": self.hours,
            "flops": self.flops,
            "no_improvement": self.idle,
        }
        for name, value in counted.items():
            limit = getattr(self.stop, name)
            if not self.reached and limit and value >= limit:
                self.reached = name
        return self.reached != before


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


class Results:
    """Reads what trials left in their folders, and records points in the Optuna study."""

    def __init__(
        self, spec: SweepSpec, folder: SweepFolder, study: OptunaStudy, view: Screen
    ) -> None:
        self.spec, self.folder, self.study, self.view = spec, folder, study, view
        self.rules, self.pruning = Rules(spec), Pruning(spec, study, folder)

    def of(self, hash: str) -> dict[str, Any]:
        """The result of a trial, empty where it left none."""
        return read_json(self.folder.trial(hash).result) or {}

    def settle(self, trial: Trial, ended: Ended) -> Status:
        """The status a trial left, or, where it died without one, what its end says."""
        run = self.folder.trial(ended.hash)
        status = scoring.status(run, self.spec)
        state, failure, message = of_exit(status, ended.code, ended.fate, asked=bool(trial.asked))
        if status.state != "finished" and run.status().state == "finished":  # training stands
            return replace(status, state=state, failure=failure, message=message)
        if status.state == "finished":
            result = self.of(ended.hash)
            wrong = misspent(trial.config, result) or self._unmeasured(result)
            if wrong:
                state, failure, message = "failed", "bug", wrong
        if state != status.state:
            run.path.mkdir(exist_ok=True)  # it may have vanished; the sweep's must be there
            run.set_status(state, failure=failure, message=message, step=status.step)
        return run.status()

    def _unmeasured(self, result: Mapping[str, Any]) -> str:
        """Why a result is none: an objective in it is no number."""
        for metric in (o.metric for o in self.spec.objectives):
            if metric in result and number(result[metric]) is None:
                return f"objective.metric: '{metric}' is {result[metric]!r}, not a number"
        return ""

    def objectives(self, trial: Trial) -> list[float] | None:
        """The objectives of a trial: the worst there is where it diverged, None where its result
        lacks them.
        """
        values, diverged = [], trial.status.state == "diverged"
        result = self.of(trial.entry.hash)
        for o in self.spec.objectives:
            found = number(result.get(o.metric))
            if not diverged and found is None:
                self.view.say(
                    f"objective.metric: {trial.entry.hash} has no number '{o.metric}' in its "
                    f"result{nearest(o.metric, result)}"
                )
                return None
            worst = math.inf if o.direction == "minimize" else -math.inf
            values.append(worst if diverged or found is None or math.isnan(found) else found)
        return values

    def gives_up(self, trial: Trial, seed: int) -> bool:
        """Whether a trial that is done, its point's ``seed``-th, was pruned, or has its point given
        up now.
        """
        if trial.status.state == "pruned" or self.pruning.turns != "each":
            return trial.status.state == "pruned"
        if not (values := self.objectives(trial)):
            return False
        return self.study.report(trial.entry.point, seed, values[0])

    def recall(self, points: Mapping[str, list[str]]) -> None:
        """Count what earlier coordinators recorded, in their order; ``points`` as planned now."""
        for point, record in self.study.recorded.items():
            known = self.study.knows(point, sorted(points.get(point, ())))
            if known and record.state == TrialState.COMPLETE and record.values:
                self.rules.point(record.values[0])

    def record(self, point: list[Trial]) -> None:
        """Record a point whose trials are all done, as the mean over its seeds; once."""
        entry, runs = point[0].entry, sorted(trial.entry.hash for trial in point)
        if self.study.knows(entry.point, runs):
            return
        pruned = any(trial.status.state == "pruned" for trial in point)
        values = [] if pruned else [v for t in point if (v := self.objectives(t)) is not None]
        complete = len(values) == len(point)
        mean = [sum(c) / len(c) for c in zip(*values, strict=True)] if complete else None
        self.study.record(entry.point, entry.params, runs, mean, pruned=pruned)
        self.rules.point(mean[0] if mean else None)
