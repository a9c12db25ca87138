"""What a sweep knows of its trials: which are done, what they came to, and what the study is told
of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnres_lab.errors import nearest
from attnres_lab.runs.failures import of_exit
from attnres_lab.runs.folder import DONE, Status, read_json
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep.launchers import Ended
from attnres_lab.sweep.plan import Trial, misspent
from attnres_lab.sweep.rules import Rules, number
from attnres_lab.sweep.spec import SweepSpec
from attnres_lab.sweep.study import Study
from attnres_lab.sweep.view import Screen


@dataclass(frozen=True)
class Outcome:
    """How a sweep run ended, in trials."""

    done: int
    failed: int
    owed: int
    interrupted: bool
    halted: str = ""  # the stop rule that held

    @property
    def exit_code(self) -> int:
        """0 all done or a stop rule held, 1 some failed or owed, 130 interrupted."""
        return (
            130 if self.interrupted else 1 if self.failed or (self.owed and not self.halted) else 0
        )


class Ledger:
    """Trials by hash, points by theirs."""

    def __init__(self, spec: SweepSpec, folder: SweepFolder, study: Study, view: Screen) -> None:
        self.spec, self.folder, self.study, self.view = spec, folder, study, view
        self.rules = Rules(spec)
        self.trials: dict[str, Trial] = {}
        self.points: dict[str, list[str]] = {}  # hashes of a point's trials, a seed each
        self.done: set[str] = set()
        self.failed: dict[str, Status] = {}

    def adopt(self, trials: list[Trial]) -> None:
        """Take planned trials: done ones are recorded, the others are owed."""
        for trial in trials:
            self.trials[trial.entry.hash] = trial
            self.points.setdefault(trial.entry.point, []).append(trial.entry.hash)
            run = self.folder.trial(trial.entry.hash)
            if run.status().state in DONE:
                self.done.add(trial.entry.hash)
                self.rules.add(read_json(run.result) or {})

    def owed(self, point: str) -> list[str]:
        """What a point still owes."""
        return [hash for hash in self.points[point] if hash not in self.done]

    def tell(self, point: str) -> None:
        """Record a point that owes nothing: the mean over its seeds."""
        runs = sorted(self.points[point])
        if self.study.told.get(point) == runs:
            return
        pruned = any(self.folder.trial(hash).status().state == "pruned" for hash in runs)
        values = [] if pruned else [v for hash in runs if (v := self.values(hash)) is not None]
        mean = (
            [sum(column) / len(runs) for column in zip(*values, strict=True)]
            if len(values) == len(runs)
            else None
        )
        self.study.tell(point, self.trials[runs[0]].entry.params, runs, mean, pruned=pruned)
        if mean:
            self.rules.point(mean[0])

    def values(self, hash: str) -> list[float] | None:
        """The objectives of a trial: the worst there is where it diverged, None where its result
        lacks them.
        """
        run, values = self.folder.trial(hash), []
        diverged, result = run.status().state == "diverged", read_json(run.result) or {}
        for o in self.spec.objectives:
            found = number(result.get(o.metric))
            if not diverged and found is None:
                self.view.say(
                    f"objective.metric: {hash} has no number '{o.metric}' in its "
                    f"result{nearest(o.metric, result)}"
                )
                return None
            value = math.nan if diverged or found is None else found
            values.append(
                (math.inf if o.direction == "minimize" else -math.inf)
                if math.isnan(value)
                else value
            )
        return values

    def settle(self, ended: Ended, *, asked: bool) -> Status:
        """The status a trial left, or, where it died without one, what its end says."""
        run = self.folder.trial(ended.hash)
        status = run.status()
        state, failure, message = of_exit(status, ended.code, ended.fate, asked=asked)
        if status.state == "finished":
            result = read_json(run.result) or {}
            wrong = misspent(self.trials[ended.hash].config, result) or self._unmeasured(result)
            if wrong:
                state, failure, message = "failed", "bug", wrong
        if state != status.state:
            run.set_status(state, failure=failure, message=message, step=status.step)
        return run.status()

    def _unmeasured(self, result: Mapping[str, Any]) -> str:
        """Why a result is none: an objective in it is no number."""
        for metric in (o.metric for o in self.spec.objectives):
            if metric in result and number(result[metric]) is None:
                return f"objective.metric: '{metric}' is {result[metric]!r}, not a number"
        return ""

    def close_failed(self) -> None:
        """No point stays running in the record: one with a failed trial failed, and is owed to the
        next run.
        """
        for point in {self.trials[hash].entry.point for hash in self.failed} & set(self.study.open):
            self.study.tell(point, {}, [], None)
