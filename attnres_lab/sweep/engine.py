"""Runs a sweep: one coordinator observes its trials, asks ``decide`` what to do, and does it."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

from attnres_lab.config import to_yaml
from attnres_lab.runs.files import same_folder
from attnres_lab.runs.folder import DONE
from attnres_lab.runs.lock import mendable
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep import scoring
from attnres_lab.sweep.checks import changes, check_named
from attnres_lab.sweep.known import bring, check_data
from attnres_lab.sweep.launchers import Ended, Launcher, make_launcher
from attnres_lab.sweep.optuna_study import OptunaStudy
from attnres_lab.sweep.plan import Plan, make_plan
from attnres_lab.sweep.pricing import Speeds, check_memory, device_of, outlook
from attnres_lab.sweep.process import TRAIN
from attnres_lab.sweep.results import Outcome, Results
from attnres_lab.sweep.spec import SpecFile
from attnres_lab.sweep.trials import Action, Situation, State, Trial, after, decide
from attnres_lab.sweep.view import Screen
from attnres_lab.tracking import SweepMirror


def run_sweep(
    source: SpecFile,
    folder: SweepFolder,
    *,
    large: bool = False,
    again: Sequence[str] | None = None,
) -> Outcome:
    """Run what is pending; or only ``again``, hashes of trials or their beginnings, from scratch;
    none: what failed. Raises UserError.
    """
    spec, plan = source.spec, make_plan(source, folder, large=large or again is not None)
    with mendable(folder.path), folder.coordinate(), ExitStack() as stack:
        bring(source, folder)
        trials = plan.known()
        check_named(trials)
        changed = list(changes(source, folder, trials))
        launcher = stack.enter_context(closing(make_launcher(spec, folder.path)))
        goal = (spec.objectives[0].metric, spec.objectives[0].direction)
        screen = stack.enter_context(Screen(folder, goal, launcher.slots))
        for line in changed:
            screen.say(line)
        device = device_of(spec, trials, launcher.slots)
        check_memory(trials, device, spec)
        if trials:
            check_data(source, folder, trials[0].config)
        about = {
            "Objective": ", ".join(f"{o.direction} {o.metric}" for o in spec.objectives),
            "Sampler": spec.sampler.name,
            "Space": ", ".join(spec.space),
            "Base": spec.base,
        }
        study = OptunaStudy(spec, source.space, folder.journal, screen.say)
        plan.write(folder, trials)  # nothing refuses it from here on
        stack.enter_context(SweepMirror(spec.name, folder.path, about))
        results = Results(spec, folder, study, screen)
        chosen = None if again is None else folder.choose([t.entry.hash for t in trials], again)
        coordinator = Coordinator(plan, trials, results, launcher, chosen)
        if spec.function == TRAIN and chosen is None:
            known = outlook(Speeds(device), plan)
            screen.outlook = lambda: known(coordinator.trials.values())
        done = coordinator.count("done")
        if spec.adaptive or done < len(trials):
            screen.say(
                f"{spec.name}: {done} of {len(trials)} trials done; "
                f"{launcher.slots} at a time; {folder.path}"
            )
        outcome = coordinator.run()
        screen.final(outcome.halted if outcome.pending or spec.adaptive else "")
        Speeds(device).learn((t, folder.trial(t.entry.hash)) for t in coordinator.trials.values())
    return outcome


class Coordinator:
    """Runs the pending ones of the planned ``trials`` of a sweep whose folder the caller holds, or
    only ``chosen`` ones (hashes), and what the plan adds to them.
    """

    def __init__(
        self,
        plan: Plan,
        trials: Iterable[Trial],
        results: Results,
        launcher: Launcher,
        chosen: Collection[str] | None = None,
    ) -> None:
        self.plan, self.results, self.launcher, self.chosen = plan, results, launcher, chosen
        self.spec, self.folder, self.study = results.spec, results.folder, results.study
        self.view, self.rules, self.pruning = results.view, results.rules, results.pruning
        self.trials: dict[str, Trial] = {}  # by hash, in the order of the plan
        self.points: dict[str, list[str]] = {}  # hashes of a point's trials, a seed each
        self.requests = self.heard = 0  # to stop
        self.more = chosen is None  # whether the plan may have further trials
        self._add(trials)

    def _add(self, trials: Iterable[Trial]) -> None:
        """Take planned trials: those that have a result are done."""
        for trial in trials:
            hash = trial.entry.hash
            status = scoring.status(self.folder.trial(hash), self.spec)
            if status.state in DONE:
                gone = status.state == "pruned" and self.pruning.on and self.chosen is None
                trial = replace(trial, state="done", status=status, given_up=gone)
                self.rules.add(self.results.of(hash))
            elif self.chosen is not None and hash not in self.chosen:
                trial = replace(trial, state="skipped")
            self.trials[hash] = trial
            self.points.setdefault(trial.entry.point, []).append(hash)

    def run(self) -> Outcome:
        """Until nothing is pending, a stop rule is reached, or somebody asks to stop: Ctrl-C,
        SIGTERM, a closed terminal, ``attnres sweep stop``.
        """
        self.folder.trials.mkdir(exist_ok=True)
        self.study.reconcile(self.points)
        for hash in self.chosen or ():
            self.study.recorded.pop(self.trials[hash].entry.point, None)
        self.results.recall(self.points)
        for point in self.points:
            self._record(point)
        for hash in self.launcher.adopt():
            if hash in self.trials and self.trials[hash].state == "pending":
                self.trials[hash] = replace(self.trials[hash], elsewhere=True)
        place = self.folder.path.stat()
        with self._listening():
            while not self._act():
                self._look_at_rows()
                self.view.tick()
                ends = self.launcher.wait(0.2 if self._of("running") else 0.05)
                same_folder(self.folder.path, place)
                self._observe(ends)
        for point in {trial.entry.point for trial in self._of("exhausted")} & set(self.study.open):
            self.study.record(point, {}, [], None)  # none stays running there
        return Outcome(
            self.count("done"),
            self.count("exhausted"),
            self.count("left"),
            bool(self.requests),
            self.halted,
        )

    @property
    def halted(self) -> str:
        """The stop rule that ends the sweep; none where trials were chosen, which then run."""
        return self.rules.reached if self.chosen is None else ""

    def count(self, state: State) -> int:
        """How many trials are in a state."""
        return len(self._of(state))

    def _of(self, *states: State) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.state in states]

    def _act(self) -> bool:
        """Do what is decided until there is nothing to do now; True once all is over."""
        while actions := self._decide():
            for action in actions:
                hash, what = action.trial, action.what
                if what == "end":
                    for trial in self._of("pending", "waiting"):
                        self.trials[trial.entry.hash] = trial.to("left")
                    return True
                if what == "propose":
                    self._propose()
                    continue
                trial = self.trials[hash] = after(self.trials[hash], action)
                if what in ("start", "adopt") and self.pruning.on:
                    self.study.begin(trial.entry.point, trial.entry.params)
                if what == "start":
                    self._start(trial)
                elif what == "finish":
                    self._finish(trial)
                elif what == "drop":
                    self._drop(trial)
                elif what == "give_up":
                    self.more = self.chosen is None
                elif what in ("prune", "stop"):
                    self.folder.trial(hash).stop.write_text(what)
                if what in ("stop", "kill"):
                    self.launcher.end(hash, kill=what == "kill")
        return False

    def _decide(self) -> list[Action]:
        hours = None if self.launcher.limits_time else self.spec.resources.time_limit
        situation = Situation(
            self.spec.retry,
            3600 * hours if hours else None,
            self.pruning.turns,
            self.requests,
            bool(self.halted),
            self.more,
            eager=self.spec.tune is not None,
            smallest=self.spec.order == "smallest",
        )
        return decide(self.trials, time.monotonic(), self.launcher.slots, situation)

    def _propose(self) -> None:
        """Ask the plan for further trials, and write them down before anything else is done."""
        proposed = self.plan.more(self.trials, self.study)
        new = [trial for trial in proposed if trial.entry.hash not in self.trials]
        self.more = bool(new)
        if new:
            self._add(new)
            self.folder.write_plan(trial.entry for trial in self.trials.values())
            for point in dict.fromkeys(trial.entry.point for trial in new):
                self.study.bind(point)
                self._record(point)

    def _start(self, trial: Trial) -> None:
        run, entry = self.folder.trial(trial.entry.hash), trial.entry
        if scoring.status(run, self.spec).state in DONE:  # by a process that nobody could end
            self._observe([Ended(entry.hash, 0)])
            return
        if not run.config.exists():
            config = replace(trial.config, name=entry.run_name[:100])
            run.path.mkdir(exist_ok=True)
            run.write_config(to_yaml(config))
        run.config.touch()  # when the trial was started last
        run.stop.unlink(missing_ok=True)
        scoring.ask(run, self.spec)
        if run.status().state != "finished":  # then only its evaluation is missing
            # an old end must not be read as the new one
            run.set_status("scheduled", step=run.status().step)
        self.launcher.start(run.path)

    def _finish(self, trial: Trial) -> None:
        """Count the result, have the pruner judge it, record the point if it was its last trial."""
        entry = trial.entry
        gone = self.results.gives_up(trial, self.points[entry.point].index(entry.hash))
        self.trials[entry.hash] = replace(trial, given_up=gone)
        self.more = self.chosen is None
        if self.rules.add(self.results.of(entry.hash)) and self.halted:
            self.view.say(
                f"stop.{self.rules.reached}: reached; running trials end by themselves, no more "
                "are started"
            )
        self._record(entry.point)

    def _drop(self, trial: Trial) -> None:
        """Say of a trial that did not run why it never will."""
        run = self.folder.trial(trial.entry.hash)
        run.path.mkdir(exist_ok=True)  # it may never have begun
        run.set_status("pruned", message="its point was given up")
        self.trials[trial.entry.hash] = replace(trial, status=run.status())
        self._record(trial.entry.point)

    def _record(self, point: str) -> None:
        """Record a point whose trials are all done."""
        trials = [self.trials[hash] for hash in self.points[point]]
        if all(trial.state == "done" for trial in trials):
            self.results.record(trials)

    def _observe(self, ends: list[Ended]) -> None:
        """Take in the ends of trials, and requests to stop: at the first, trials write a checkpoint
        and end; at the second they are ended at once.
        """
        for ended in ends:
            trial = self.trials.get(ended.hash)
            if trial is None or trial.state != "running":  # of an older plan
                continue
            status = self.results.settle(trial, ended)
            reached = self.folder.trial(ended.hash).last_row().get("step", 0)
            self.trials[ended.hash] = trial.to("ended", status=status, reached=reached)
            result = self.results.of(ended.hash) if status.state in DONE else {}
            self.view.ended(trial.entry, status, result)
        if self.folder.stop.exists():
            self.folder.stop.unlink(missing_ok=True)
            self.requests += 1
        if self.requests > self.heard:
            self.heard = self.requests
            self.view.say(
                "ending at once"
                if self.requests > 1
                else "stopping: trials write a checkpoint and end; once more to end them at once"
            )

    def _look_at_rows(self) -> None:
        """Show the pruner what the first seeds of points logged since the last look."""
        for trial in self._of("running"):
            entry = trial.entry
            first = self.points[entry.point][0] == entry.hash
            if first and not trial.given_up and self.pruning.gives_up(entry):
                self.trials[entry.hash] = replace(trial, given_up=True)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Take signals as requests to stop."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        old = {number: signal.signal(number, self.interrupt) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def interrupt(self, *_: object) -> None:
        """Ask to stop, as Ctrl-C does; it is heard within a fifth of a second."""
        self.requests += 1
        if self.requests > 2:
            raise KeyboardInterrupt
