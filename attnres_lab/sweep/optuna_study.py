"""The Optuna study of a sweep: it proposes points, gives up bad ones, and holds a complete record
of every point.

The record is a mirror of the run folders. A point is one Optuna trial whatever its number of seeds:
its value is the mean over them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from attnres_lab.errors import UserError, nearest
from attnres_lab.sweep.schema import SweepSpec
from attnres_lab.sweep.space import Axis, Interval, Point, Scalar, Space, every
from attnres_lab.sweep.storage import Database, open_journal


@dataclass(frozen=True)
class Record:
    """What the study holds of a finished point: hashes of its runs, and their mean objectives."""

    runs: list[str]
    state: TrialState
    values: list[float] | None


class OptunaStudy:
    """Propose, report and record by point. One process uses it at a time where the storage is the
    journal.
    """

    def __init__(
        self, spec: SweepSpec, space: Space, journal: Path, say: Callable[[str], None]
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.spec, self.space, self.say = spec, space, say
        self.distributions = {axis.key: _distribution(axis) for axis in every(space.axes)}
        if spec.tune:  # any value, so that another start is no other study
            self.distributions[spec.tune.key] = FloatDistribution(1e-30, 1e30, log=True)
        self.storage: Any = Database(spec.storage, say) if spec.storage else open_journal(journal)
        self.study = self._create()
        self.asked: optuna.Trial | None = None  # proposed, and not yet bound to a point
        self.refused: set[str] = set()  # why proposals made no run
        self.open: dict[str, list[optuna.Trial]] = {}  # running Optuna trials by point
        self.recorded: dict[str, Record] = {}  # by point
        self.reported: dict[str, set[int]] = {}  # steps, by point

    def reconcile(self, points: Mapping[str, object]) -> None:
        """Take up the trials a dead coordinator left running, where ``points`` holds them; end the
        others. ``recorded`` then has what was recorded in the order in which it was.
        """
        trials = self.study.get_trials(deepcopy=False)
        for trial in sorted(trials, key=lambda t: t.datetime_complete or datetime.max):
            point = trial.user_attrs.get("point")
            if trial.state.is_finished() and point and (runs := trial.user_attrs.get("runs")):
                self.recorded[point] = Record(runs, trial.state, trial.values)
            elif trial.state == TrialState.RUNNING and point in points:
                self.open.setdefault(str(point), []).append(
                    optuna.Trial(self.study, trial._trial_id)
                )
                self.reported[str(point)] = set(trial.intermediate_values)
            elif trial.state == TrialState.RUNNING and self._orphan(trial):
                self.study.tell(trial.number, state=TrialState.FAIL)

    def _orphan(self, trial: optuna.trial.FrozenTrial) -> bool:
        """In no plan. A shared database holds the points of other machines too: there only one that
        was never bound is nobody's, and that is only sure after a while.
        """
        started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return self.spec.storage is None or (
            "point" not in trial.user_attrs and time.time() - started > 600
        )

    def proposed(self, points: Iterable[str]) -> int:
        """Points proposed so far, by all who share the storage, and those of ``points`` that it
        does not know or that left no objective. What was asked for and is bound to no point is no
        point yet: its proposer may be dead.
        """
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = self.study.get_trials(deepcopy=False, states=states)
        known = sum("point" in trial.user_attrs for trial in trials)
        told = {point for point, r in self.recorded.items() if r.state != TrialState.FAIL}
        return known + len(set(points) - told - set(self.open))

    def propose(self) -> Point:
        """A new point; ``bind`` it once the plan on disk holds it, so that no crash loses it."""
        self.asked = trial = self.study.ask()

        def suggest(axis: Axis) -> Any:
            if not isinstance(axis.values, Interval):
                return trial.suggest_categorical(axis.key, self.distributions[axis.key].choices)
            suggest_number = trial.suggest_int if axis.values.whole else trial.suggest_float
            return suggest_number(axis.key, axis.values.low, axis.values.high, log=axis.values.log)

        return self.space.propose(suggest)

    def bind(self, point: str, runs: Sequence[str] = ()) -> None:
        """Say which planned point was proposed last; nothing where none was. One that is recorded
        already, with these ``runs``, gets the same record again.
        """
        if (trial := self.asked) is None:
            return
        self.asked = None
        trial.set_user_attr("point", point)
        self.open.setdefault(point, []).append(trial)
        if runs and self.knows(point, list(runs), failed=True):
            self._write(point, {}, self.recorded[point])

    def refuse(self, why: str) -> None:
        """What was proposed last makes no run; each reason is said once."""
        if (trial := self.asked) is None:
            return
        self.asked = None
        self.study.tell(trial, state=TrialState.FAIL)
        if why not in self.refused:
            self.refused.add(why)
            self.say(why)

    def begin(self, point: str, params: Mapping[str, Scalar]) -> None:
        """Make an enumerated point known as running, so that a pruner can judge it."""
        if point not in self.open:
            self.study.enqueue_trial(dict(params), user_attrs={"point": point})
            self.open[point] = [self.study.ask({key: self.distributions[key] for key in params})]

    def report(self, point: str, step: int, value: float) -> bool:
        """Report an intermediate value; True if the pruner gives the point up. What was reported
        before a restart is not reported again.
        """
        trial, known = self.open[point][0], self.reported.setdefault(point, set())
        if step in known:
            return False
        known.add(step)
        trial.report(value, step)
        return bool(trial.should_prune())

    def knows(self, point: str, runs: list[str], *, failed: bool = False) -> bool:
        """Whether the point is recorded with these runs; as failed only where that is asked for:
        what left no objective may have one by now.
        """
        record = self.recorded.get(point)
        return (
            record is not None
            and record.runs == runs
            and (failed or record.state != TrialState.FAIL)
        )

    def record(
        self,
        point: str,
        params: Mapping[str, Scalar],
        runs: list[str],
        values: list[float] | None,
        *,
        pruned: bool = False,
    ) -> None:
        """Record a finished point: its objectives, or None where a run left none. A point recorded
        before with the same runs is left alone.
        """
        if self.knows(point, runs, failed=values is None and not pruned):
            return
        failed = TrialState.FAIL if values is None else TrialState.COMPLETE
        state = TrialState.PRUNED if pruned else failed
        values = values if state == TrialState.COMPLETE else None
        self._write(point, params, Record(runs, state, values))

    def _write(self, point: str, params: Mapping[str, Scalar], record: Record) -> None:
        values = record.values if record.state == TrialState.COMPLETE else None
        trials = self.open.pop(point, [])
        for trial in trials:
            trial.set_user_attr("runs", record.runs)
            self.study.tell(trial, values, record.state)
        if not trials:
            self.study.add_trial(
                optuna.create_trial(
                    state=record.state,
                    values=values,
                    params=dict(params),
                    distributions={key: self.distributions[key] for key in params},
                    user_attrs={"point": point, "runs": record.runs},
                )
            )
        self.recorded[point] = record

    def _create(self) -> optuna.Study:
        """The study of this sweep. Optuna cannot grow a list of choices, so another space is
        another study.

        In a database, where other machines may still write the old one, both stay, each named with
        the hash of its space; the journal, which is this sweep's own, is made anew from the
        folders.
        """
        shape = {
            "distributions": {k: repr(d) for k, d in self.distributions.items()},
            "objectives": [asdict(o) for o in self.spec.objectives],
        }
        signature = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:12]
        name = f"{self.spec.name}-{signature}" if self.spec.storage else self.spec.name
        directions = [o.direction for o in self.spec.objectives]
        study = optuna.create_study(
            storage=self.storage, study_name=name, directions=directions, load_if_exists=True
        )
        if not self.spec.storage and study.user_attrs.get("signature", signature) != signature:
            optuna.delete_study(study_name=name, storage=self.storage)
            study = optuna.create_study(
                storage=self.storage, study_name=name, directions=directions
            )
        if "signature" not in study.user_attrs:
            study.set_user_attr("objectives", [o.metric for o in self.spec.objectives])
            study.set_user_attr("signature", signature)
        study.sampler = make_sampler(self.spec, len(study.get_trials(deepcopy=False)))
        study.pruner = make_pruner(self.spec)
        return study


def _distribution(axis: Axis) -> BaseDistribution:
    if not isinstance(axis.values, Interval):
        return CategoricalDistribution([choice.label for choice in axis.values])
    return (IntDistribution if axis.values.whole else FloatDistribution)(
        axis.values.low, axis.values.high, log=axis.values.log
    )


def make_sampler(spec: SweepSpec, known: int) -> optuna.samplers.BaseSampler:
    """A resumed sampler draws new numbers; only QMC keeps its place in a sequence, and so its seed.
    Raises UserError.
    """
    if not spec.adaptive:
        return optuna.samplers.RandomSampler(seed=0)
    seed = spec.sampler.seed if spec.sampler.name == "qmc" else spec.sampler.seed + known
    return _construct("sampler", spec.sampler.name, {"seed": seed, **spec.sampler.options})


def make_pruner(spec: SweepSpec) -> optuna.pruners.BasePruner:
    """The pruner that the sweep names, or one that prunes nothing. Raises UserError."""
    if spec.pruner is None:
        return optuna.pruners.NopPruner()
    if len(spec.objectives) > 1:
        raise UserError("pruner: with several objectives there is none; drop one of the two")
    return _construct("pruner", spec.pruner.name, dict(spec.pruner.options))


def _construct(kind: str, name: str, options: dict[str, Any]) -> Any:
    """An Optuna sampler or pruner by its class name without the ending, in lower case."""
    module = optuna.samplers if kind == "sampler" else optuna.pruners
    ending = kind.capitalize()
    classes = {
        n.removesuffix(ending).lower(): getattr(module, n)
        for n in module.__all__
        if n.endswith(ending) and not n.startswith("Base")
    }
    if name.lower() not in classes:
        raise UserError(f"{kind}.name: unknown {kind} '{name}'{nearest(name, classes)}")
    cls = classes[name.lower()]
    if "seed" in options and "seed" not in inspect.signature(cls).parameters:
        del options["seed"]
    try:
        with warnings.catch_warnings():  # the sweep file chose it knowingly
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return cls(**options)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"{kind}.options: {error}") from None
