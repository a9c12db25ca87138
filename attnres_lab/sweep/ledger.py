"""What a sweep knows of its trials: which are done, what they came to, and what the study is told of them."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any, Protocol

from attnres_lab.errors import nearest
from attnres_lab.runfiles import DONE, Status, read_json
from attnres_lab.sweep.folder import Entry, SweepFolder
from attnres_lab.sweep.launchers import Ended
from attnres_lab.sweep.plan import Trial, misspent
from attnres_lab.sweep.rules import Rules
from attnres_lab.sweep.spec import SweepSpec
from attnres_lab.sweep.study import Study
from attnres_lab.sweep.trial import BUSY, REMEDY


class View(Protocol):
    """Shows what happens."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def started(self, entry: Entry) -> None:
        """A trial was started."""

    def ended(self, entry: Entry, status: Status, result: dict[str, Any]) -> None:
        """A trial ended."""

    def tick(self) -> None:
        """About once a second."""


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
        return 130 if self.interrupted else 1 if self.failed or (self.owed and not self.halted) else 0


class Ledger:
    """Trials by hash, points by theirs."""

    def __init__(self, spec: SweepSpec, folder: SweepFolder, study: Study, view: View) -> None:
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
        for trial in trials:
            run = self.folder.trial(trial.entry.hash)
            if run.status().state in DONE:
                self.done.add(trial.entry.hash)
                self.rules.add(read_json(run.result) or {})

    def owed(self, point: str) -> list[str]:
        """What a point still owes."""
        return [hash for hash in self.points[point] if hash not in self.done]

    def tell(self, point: str) -> None:
        """Record a point that owes nothing."""
        runs = sorted(self.points[point])
        if self.study.told.get(point) == runs:
            return
        if any(self.folder.trial(hash).status().state == "pruned" for hash in runs):
            self.study.tell(point, self.trials[runs[0]].entry.params, runs, None, pruned=True)
            return
        values = [self.values(hash) for hash in runs]
        known = [v for v in values if v is not None]
        mean = [sum(column) / len(known) for column in zip(*known, strict=True)] if len(known) == len(runs) else None
        self.study.tell(point, self.trials[runs[0]].entry.params, runs, mean)
        if mean:
            self.rules.point(mean[0])

    def values(self, hash: str) -> list[float] | None:
        """The objectives of a trial: the worst there is where it diverged, None where its result lacks them."""
        run = self.folder.trial(hash)
        worst = {"minimize": float("inf"), "maximize": float("-inf")}
        if run.status().state == "diverged":
            return [worst[o.direction] for o in self.spec.objectives]
        result = read_json(run.result) or {}
        values = []
        for o in self.spec.objectives:
            if o.metric not in result:
                self.view.say(f"objective.metric: {hash} has no '{o.metric}' in its result{nearest(o.metric, result)}")
                return None
            value = float(result[o.metric])
            values.append(worst[o.direction] if value != value else value)
        return values

    def settle(self, ended: Ended, *, asked: bool) -> Status:
        """The status a trial left, or, where it died without one, what its end says."""
        run = self.folder.trial(ended.hash)
        status = run.status()
        if status.state == "finished" and (wrong := misspent(self.trials[ended.hash].config, read_json(run.result) or {})):
            run.set_status("failed", failure="bug", message=wrong, step=status.step)
            return run.status()
        if status.state in DONE or status.state in ("failed", "stopped"):
            return status
        if asked or ended.fate == "stopped":
            run.set_status("stopped", message="ended on request" if asked else "ended by the cluster", step=status.step)
        elif ended.fate == "out_of_memory":
            run.set_status("failed", failure="out_of_memory", message=f"the node's memory was not enough; {REMEDY}", step=status.step)
        elif ended.code == BUSY:
            run.set_status("failed", failure="infrastructure", message="another process still holds the trial's folder", step=status.step)
        elif ended.code is None or ended.code < 0:
            by = "the process is gone" if ended.code is None else f"killed by {signal.Signals(-ended.code).name}"
            run.set_status("failed", failure="killed", message=by, step=status.step)
        else:
            run.set_status("failed", failure="bug", message=f"exit code {ended.code}", step=status.step)
        return run.status()

    def close_failed(self) -> None:
        """No point stays running in the record: one with a failed trial failed, and is owed to the next run."""
        for point in {self.trials[hash].entry.point for hash in self.failed} & set(self.study.open):
            self.study.tell(point, {}, [], None)
