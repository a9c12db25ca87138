"""One coordinator for each sweep: it starts what is owed, records what ended, and asks the study
what to do next.
"""

from __future__ import annotations

import errno
import heapq
import math
import os
import signal
import time
from dataclasses import replace

from attnres_lab.config import to_yaml
from attnres_lab.runs.folder import DONE, Status, read_json, write_atomic
from attnres_lab.runs.sweep import Entry, SweepFolder, last_row
from attnres_lab.sweep.launchers import Ended, Job, Launcher
from attnres_lab.sweep.ledger import Ledger, Outcome
from attnres_lab.sweep.plan import Planner
from attnres_lab.sweep.pruning import Pruning
from attnres_lab.sweep.study import Study
from attnres_lab.sweep.tuning import Tuning, losses_in
from attnres_lab.sweep.view import Screen

PATIENCE = 600.0  # seconds that a trial may take to write its last checkpoint


class Coordinator:
    """Runs the owed trials of a sweep whose folder the caller holds."""

    def __init__(
        self, planner: Planner, folder: SweepFolder, launcher: Launcher, study: Study, view: Screen
    ) -> None:
        self.planner, self.folder, self.launcher, self.study, self.view = (
            planner,
            folder,
            launcher,
            study,
            view,
        )
        self.spec = planner.spec
        self.ledger, self.pruning = (
            Ledger(self.spec, folder, study, view),
            Pruning(self.spec, study, folder),
        )
        self.rules, self.trials, self.points, self.done = (
            self.ledger.rules,
            self.ledger.trials,
            self.ledger.points,
            self.ledger.done,
        )
        if self.spec.tune:
            self.tuning, self.losses = Tuning(planner), losses_in(folder, self.spec)
        self.only: set[str] | None = None  # hashes, where not everything owed shall run
        self.running: dict[str, float] = {}  # start time
        self.queue: list[tuple[float, int, str]] = []  # (-FLOPs, order, hash): the largest first
        self.queued: set[str] = set()  # ever put into the queue
        self.later: list[tuple[float, str]] = []  # (time, hash): waiting for a retry
        self.attempts: dict[str, int] = {}
        self.steps: dict[str, int] = {}  # where a trial was stopped the last time
        self.signals = self.obeyed = 0  # requests to stop
        self.asked: dict[str, float] = {}  # when a trial was asked to end

    def run(self) -> Outcome:
        """Until nothing is owed, a stop rule holds, or somebody asks to stop: Ctrl-C, SIGTERM, a
        closed terminal, ``attnres sweep stop``.
        """
        self.study.reconcile(self.points)
        for hash in self.only or ():
            self.study.told.pop(self.trials[hash].entry.point, None)
        self.running = dict.fromkeys(
            set(self.launcher.adopt()) & (set(self.trials) - self.done), time.monotonic()
        )
        self.queued.update(self.running)
        for point in self.points:
            self._advance(point)
        old = {
            number: signal.signal(number, self.interrupt)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        place = self.folder.path.stat()
        try:
            self._fill()
            while self.running or not (
                self.signals or self.rules.held or not (self.queue or self.later)
            ):
                ends = self.launcher.wait(0.05 if self.later and not self.running else 0.2)
                self._still_there(place)
                for ended in ends:
                    self._ended(ended)
                self._obey()
                self._fill()  # before all that can wait
                self._watch()
                self.view.tick()
            self.ledger.close_failed()
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
        owed = len((self.only or set(self.trials)) - self.done - set(self.ledger.failed))
        return Outcome(
            len(self.done), len(self.ledger.failed), owed, bool(self.signals), self.rules.held
        )

    def _still_there(self, place: os.stat_result) -> None:
        """Raises OSError where the sweep's folder was moved, deleted or unmounted: what is written
        from here on would start another one in its place.
        """
        if not self.folder.path.exists() or not os.path.samestat(place, self.folder.path.stat()):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder.path))

    def _advance(self, point: str) -> None:
        """Queue what a point still owes (one seed after the other, if it may be pruned); record it
        when it owes nothing.
        """
        owed = self.ledger.owed(point)
        for hash in self.pruning.ready(owed, len(self.points[point])):
            if hash not in self.queued and (self.only is None or hash in self.only):
                self._push(hash)
        if not owed:
            self.ledger.tell(point)

    def _push(self, hash: str) -> None:
        """The largest first; where points may be pruned, begun points before new ones: a pruner
        compares with complete ones.
        """
        entry = self.trials[hash].entry
        begun = self.pruning.on and any(h in self.done for h in self.points[entry.point])
        self.queued.add(hash)
        heapq.heappush(
            self.queue, (float("-inf") if begun else -(entry.flops or 0.0), len(self.queued), hash)
        )

    def _fill(self) -> None:
        """Start trials while there are slots."""
        for ready, hash in [item for item in self.later if item[0] <= time.monotonic()]:
            self.later.remove((ready, hash))
            self._push(hash)
        while (
            not self.signals
            and not self.rules.held
            and len(self.running) < self.launcher.slots
            and (self.queue or self._propose())
        ):
            self._start(heapq.heappop(self.queue)[2])

    def _propose(self) -> bool:
        """Ask for new points until one of them owes a trial; False where none is left to
        propose.
        """
        while self.spec.adaptive and self.only is None and not self.queue:
            unknown = set(self.points) - set(self.study.told) - set(self.study.open)
            if self.study.proposed() + len(unknown) >= (self.spec.trials or 0):
                return False
            asked, place = self.study.propose()
            trials = list(self.planner.resolve(place))
            point = trials[0].entry.point
            new = point not in self.points
            if new:
                self.ledger.adopt(trials)
                self.folder.write_plan([t.entry for t in self.trials.values()])
            self.study.bind(asked, point)
            if new:
                self._advance(point)
            elif not self.ledger.owed(point):  # proposed before, and its result is known
                self.study.told.pop(point, None)
                self.ledger.tell(point)
        return bool(self.queue)

    def _extend(self) -> None:
        """Take the trials that the results of tuning ask for."""
        new = [t for t in self.tuning.trials(self.losses) if t.entry.hash not in self.trials]
        if new:
            self.ledger.adopt(new)
            self.folder.write_plan([t.entry for t in self.trials.values()])
        for point in dict.fromkeys(t.entry.point for t in new):
            self._advance(point)

    def _start(self, hash: str) -> None:
        trial, run = self.trials[hash], self.folder.trial(hash)
        self.running[hash] = time.monotonic()
        if run.status().state in DONE:  # by a process that nobody could end
            self._ended(Ended(hash, 0))
            return
        if not run.config.exists():
            write_atomic(
                run.config, to_yaml(replace(trial.config, name=trial.entry.run_name[:100])).encode()
            )
        run.stop.unlink(missing_ok=True)
        # an old end must not be read as the new one
        run.set_status("scheduled", step=run.status().step)
        if self.pruning.on:
            self.study.begin(trial.entry.point, trial.entry.params)
        self.launcher.start(Job(hash, run.path))

    def _ended(self, ended: Ended) -> None:
        hash = ended.hash
        if self.running.pop(hash, None) is None:  # of an older plan
            return
        entry = self.trials[hash].entry
        status = self.ledger.settle(ended, asked=self.asked.pop(hash, None) is not None)
        result = (read_json(self.folder.trial(hash).result) or {}) if status.state in DONE else {}
        self.view.ended(entry, status, result)
        if status.state in DONE:
            self.done.add(hash)
            if self.rules.add(result):
                self.view.say(
                    f"stop.{self.rules.held}: reached; running trials end by themselves, no more "
                    "are started"
                )
            self._judge(entry, status)
            self._advance(entry.point)
            if entry.tuning and self.only is None:
                self._extend()
        elif (status.state == "failed" or not self.signals) and not self._again(hash, status):
            self.ledger.failed[hash] = status

    def _judge(self, entry: Entry, status: Status) -> None:
        """A point that is given up spares its other seeds."""
        values = (
            self.ledger.values(entry.hash)
            if status.state != "pruned" and self.pruning.over_seeds
            else None
        )
        if status.state == "pruned" or (
            values
            and self.pruning.seed_done(entry, self.points[entry.point].index(entry.hash), values[0])
        ):
            for hash in self.ledger.owed(entry.point):
                self.folder.trial(hash).set_status("pruned", message="its point was given up")
                self.done.add(hash)

    def _watch(self) -> None:
        """Ask hopeless trials, and those out of time, to end; end those that were asked long
        ago.
        """
        entries = [self.trials[hash].entry for hash in self.running if hash not in self.asked]
        for entry in self.pruning.hopeless(
            [e for e in entries if self.points[e.point][0] == e.hash]
        ):
            self._ask(entry.hash, "prune")
        limit = None if self.launcher.limits_time else self.spec.resources.time_limit
        for hash, started in self.running.items():
            if limit and hash not in self.asked and time.monotonic() - started > 3600 * limit:
                self._ask(hash, "stop")
            elif time.monotonic() - self.asked.get(hash, math.inf) > PATIENCE:
                self.launcher.end(hash, kill=True)

    def _ask(self, hash: str, what: str) -> None:
        """Ask a trial to write a checkpoint and end."""
        self.asked.setdefault(hash, time.monotonic())
        self.folder.trial(hash).stop.write_text(what)
        if what == "stop":
            self.launcher.end(hash, kill=False)

    def _again(self, hash: str, status: Status) -> bool:
        """What was preempted or ran out of time goes on at once, as long as it gets on; what failed
        later, if the policy allows.
        """
        policy, step = self.spec.retry, last_row(self.folder.trial(hash)).get("step", 0)
        attempt, pause = self.attempts.get(hash, 0), 0.0
        if status.state == "failed" or step <= self.steps.get(hash, -1):
            allowed = {"out_of_memory": policy.out_of_memory, "config": 0, "bug": 0}.get(
                str(status.failure), policy.infrastructure
            )
            if attempt >= allowed or self.signals:
                return False
            self.attempts[hash], pause = attempt + 1, policy.backoff * 2**attempt
        self.steps[hash] = step
        self.later.append((time.monotonic() + pause, hash))
        return True

    def _obey(self) -> None:
        """The first request to stop: trials write a checkpoint and end. The second: they are ended
        at once.
        """
        if self.folder.stop.exists():
            self.folder.stop.unlink(missing_ok=True)
            self.signals += 1
        if self.signals > self.obeyed:
            self.obeyed = self.signals
            self.view.say(
                "ending at once"
                if self.signals > 1
                else "stopping: trials write a checkpoint and end; once more to end them at once"
            )
            self.later.clear()
            for hash in self.running:
                self._ask(hash, "stop")
                if self.signals > 1:
                    self.launcher.end(hash, kill=True)

    def interrupt(self, *_: object) -> None:
        """Ask to stop, as Ctrl-C does; the loop obeys within a fifth of a second."""
        self.signals += 1
        if self.signals > 2:
            raise KeyboardInterrupt
