"""Which trials a sweep has, and in what order they become known: grid, search, tuned."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import DONE, read_json
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.runs.tuning import MOST
from attnres_lab.sweep.plan import Planner
from attnres_lab.sweep.rules import number
from attnres_lab.sweep.space import Axis, Interval, Point, Scalar
from attnres_lab.sweep.spec import SweepSpec
from attnres_lab.sweep.trials import Trial
from attnres_lab.sweep.tuning import EXPECTED, Losses, Tuning

if TYPE_CHECKING:  # Optuna, which a plain grid has no need of here
    from attnres_lab.sweep.optuna_study import OptunaStudy

DRAWN = 64  # points that the price of a search is taken from


class Plan(Protocol):
    """Which trials a sweep has: all at once (``Grid``), one point after the other (``Search``), or
    some first and the others once those are done (``Tuned``).

    To plug in another kind, write a class with these three methods and have ``make_plan`` return
    it; the engine needs nothing else. Trials come from ``Planner.resolve``, and the first two
    answer from what is on disk and in ``trials`` alone, so that after a crash they answer the same.
    """

    def known(self) -> list[Trial]:
        """The trials known now, without asking anybody: what ``attnres sweep plan`` prices and a
        run starts with. Raises UserError.
        """

    def more(self, trials: Mapping[str, Trial], study: OptunaStudy) -> list[Trial]:
        """Further trials to run, given those so far with their states (by hash; the results are in
        their folders); empty: none for now.

        Asked whenever a slot is free that no pending trial can take, and again after each trial
        that ended, until there is none. What is returned is written into the plan on disk before
        any of it starts; a trial that is there already is left out. ``study``
        proposes points and holds the record of every point that is done.
        """

    def prospect(self) -> list[Prospect]:
        """For prices: what the whole sweep runs, whatever has run so far."""


@dataclass(frozen=True)
class Prospect:
    """A trial, and how many runs like it are expected in the whole sweep, and at most."""

    trial: Trial
    expected: float = 1.0
    most: float = 1.0


class Grid:
    """Every point of the space, known from the start."""

    def __init__(self, planner: Planner, *, large: bool = False) -> None:
        self.planner, self.large = planner, large

    def known(self) -> list[Trial]:
        """All. Raises UserError for more than ``LIMIT``, unless ``large``."""
        return self.planner.grid(large=self.large)

    def more(self, trials: Mapping[str, Trial], study: OptunaStudy) -> list[Trial]:
        """None."""
        return []

    def prospect(self) -> list[Prospect]:
        """All, once."""
        return [Prospect(trial) for trial in self.known()]


class Search:
    """Points that an Optuna sampler proposes, until there are as many as the sweep asks for."""

    def __init__(self, planner: Planner, folder: SweepFolder) -> None:
        self.planner, self.folder = planner, folder

    def known(self) -> list[Trial]:
        """The trials of the points proposed so far. A point that the space no longer holds keeps
        its folder, but is not part of the plan.
        """
        trials: list[Trial] = []
        for params in {e.point: e.params for e in self.folder.plan()}.values():
            with suppress(KeyError):
                known = dict(params)
                place = self.planner.space.propose(lambda axis: known[axis.key])  # noqa: B023
                trials += self.planner.resolve(place)
        return trials

    def more(self, trials: Mapping[str, Trial], study: OptunaStudy) -> list[Trial]:
        """The trials of the next new point; one that was proposed before counts as proposed."""
        points: dict[str, list[str]] = {}
        for trial in trials.values():
            points.setdefault(trial.entry.point, []).append(trial.entry.hash)
        while study.proposed(points) < (self.planner.spec.trials or 0):
            new = list(self.planner.resolve(study.propose()))
            if (point := new[0].entry.point) not in points:
                return new
            study.bind(point, sorted(points[point]))
        return []

    def prospect(self) -> list[Prospect]:
        """Points drawn evenly from the space share what is expected; at most every one costs what
        the most expensive of them and of the space's corners costs. Raises UserError where none of
        them makes a run.
        """
        spec, space = self.planner.spec, self.planner.space
        points, whole = spec.trials or 0, space.size()  # 0 of a space with intervals
        if 0 < whole <= DRAWN:
            even, corners = list(space.points()), list[Point]()
        else:
            draw = random.Random(0)
            even = [space.propose(partial(_drawn, draw)) for _ in range(DRAWN)]
            corners = [space.propose(partial(_corner, draw)) for _ in range(DRAWN)]
        runs = (min(points, whole) if whole else points) * space.replicates
        runs = min(runs, spec.stop.trials or runs)
        inner, outer = self._made(even), self._made(corners)
        dearest = max([*inner, *outer], key=lambda trial: trial.entry.flops or 0.0)
        found = [Prospect(trial, runs / len(inner), 0.0) for trial in inner]
        return [*found, Prospect(dearest, 0.0, runs)]

    def _made(self, points: list[Point]) -> list[Trial]:
        """A trial of each point that makes a run; what does not is refused when it is proposed."""
        found, refused = list[Trial](), list[UserError]()
        for point in points:
            try:
                found.append(next(self.planner.resolve(point)))
            except UserError as error:
                refused.append(error)
        if refused and not found:
            raise refused[0]
        return found


class Tuned:
    """The plan of a sweep under ``tune``: what ``Tuning`` says of the results on disk."""

    def __init__(self, planner: Planner, folder: SweepFolder, *, large: bool = False) -> None:
        assert planner.spec.tune
        planner.limit(planner.space.replicates + MOST * planner.spec.tune.seeds, large=large)
        self.tuning, self.losses = Tuning(planner), losses_in(folder, planner.spec)

    def known(self) -> list[Trial]:
        """Every trial that the results so far ask for."""
        return self.tuning.trials(self.losses)

    def more(self, trials: Mapping[str, Trial], study: OptunaStudy) -> list[Trial]:
        """Those that came up since."""
        return [trial for trial in self.known() if trial.entry.hash not in trials]

    def prospect(self) -> list[Prospect]:
        """Of each point its measuring runs, and its tuning runs by how many values a cell tries. No
        value of the tuned key changes a price.
        """
        return [
            Prospect(trial, measuring + EXPECTED * tuned, measuring + MOST * tuned)
            for trial, measuring, tuned in self.tuning.prospect()
        ]


def _drawn(draw: random.Random, axis: Axis) -> Scalar:
    """A value of the axis, each as likely as another."""
    if not isinstance(axis.values, Interval):
        return draw.choice(axis.values).label
    low, high, part = axis.values.low, axis.values.high, draw.random()
    value = low * (high / low) ** part if axis.values.log else low + (high - low) * part
    return round(value) if axis.values.whole else value


def _corner(draw: random.Random, axis: Axis) -> Scalar:
    """An end of an interval, any other value."""
    if isinstance(axis.values, Interval):
        return draw.choice((axis.values.low, axis.values.high))
    return draw.choice(axis.values).label


def make_plan(planner: Planner, folder: SweepFolder, *, large: bool = False) -> Plan:
    """The plan that the sweep file asks for."""
    if planner.spec.tune:
        return Tuned(planner, folder, large=large)
    return Search(planner, folder) if planner.spec.adaptive else Grid(planner, large=large)


def losses_in(folder: SweepFolder, spec: SweepSpec) -> Losses:
    """What the trials in ``folder`` came to by the first objective; a result is read once."""
    goal, known = spec.objectives[0], dict[str, float]()

    def loss(hash: str) -> float | None:
        run = folder.trial(hash)
        if hash not in known and (state := run.status().state) in DONE:
            found = number((read_json(run.result) or {}).get(goal.metric))
            lost = state != "finished" or found is None or not math.isfinite(found)
            sign = 1.0 if goal.direction == "minimize" else -1.0
            known[hash] = math.inf if lost or found is None else sign * found
        return known.get(hash)

    return loss
