"""Which trials a sweep has, each with its config, hash and cost, and in what order they become
known: a grid, a search, or tuned.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from attnres_lab.config import RunConfig, load
from attnres_lab.errors import UserError
from attnres_lab.model.flops import num_params
from attnres_lab.runs.sweep import Entry, SweepFolder
from attnres_lab.runs.tuning import MOST
from attnres_lab.shipped import find
from attnres_lab.sweep.checks import check_source
from attnres_lab.sweep.space import Axis, Interval, Point, Scalar, sets
from attnres_lab.sweep.spec import SpecFile
from attnres_lab.sweep.trials import Trial, misspent, trial_hash
from attnres_lab.sweep.tuning import EXPECTED, Tuning, losses_in, tuning_seeds
from attnres_lab.yamlfile import YamlFile

if TYPE_CHECKING:  # Optuna, which a plain grid has no need of here
    from attnres_lab.sweep.optuna_study import OptunaStudy

LIMIT = 10_000
DRAWN = 64  # points that the price of a search is taken from, and that may all make no run


@dataclass(frozen=True)
class Prospect:
    """A trial, and how many runs like it are expected in the whole sweep, and at most."""

    trial: Trial
    expected: float = 1.0
    most: float = 1.0


class Plan:
    """The trials of a sweep file: here every point of its space. Raises UserError for a base, an
    override or a point that makes no run.

    Where not all are known from the start, a subclass answers ``known``, ``more``, ``prospect`` and
    ``settled`` otherwise, and ``make_plan`` returns it; the engine needs nothing else. All but
    ``more`` answer from what is on disk alone, so that after a crash they answer the same.
    """

    def __init__(self, source: SpecFile, *, large: bool = False) -> None:
        self.source, self.spec, self.space, self.large = source, source.spec, source.space, large
        path = source.file.path.parent / self.spec.base
        try:
            self.base = YamlFile(path if path.is_file() else find(self.spec.base, "experiments"))
        except UserError as error:
            raise UserError(f"{source.file.where('base')}: base: {error}") from None

    def known(self) -> list[Trial]:
        """The trials known now, without asking anybody: what ``attnres sweep plan`` prices and a
        run starts with. The same resolved config is one trial. Raises UserError.
        """
        self.limit(self.space.replicates)
        trials: dict[str, Trial] = {}
        for point in self.space.points():
            for trial in self.resolve(point):
                trials.setdefault(trial.entry.hash, trial)
        return list(trials.values())

    def more(self, trials: Mapping[str, Trial], study: OptunaStudy) -> list[Trial]:
        """Further trials to run, given those so far with their states (by hash; the results are in
        their folders); empty: none for now.

        Asked whenever a slot is free that no pending trial can take, and again after each trial
        that ended, until there is none. What is returned is written into the plan on disk before
        any of it starts; a trial that is there already is left out. ``study``
        proposes points and holds the record of every point that is done.
        """
        return []

    def write(self, folder: SweepFolder, trials: Iterable[Trial]) -> None:
        """Write down what is planned, and by what file."""
        file = self.source.file
        folder.describe(self.spec.name, str(self.base.path), file.text, str(file.path.resolve()))
        folder.write_plan(trial.entry for trial in trials)

    def prospect(self) -> list[Prospect]:
        """For prices: what the whole sweep runs, whatever has run so far."""
        return [Prospect(trial) for trial in self.known()]

    def settled(self) -> bool:
        """Whether ``known`` has every trial there will be; a search does not say."""
        return not self.spec.adaptive

    def limit(self, runs: int) -> None:
        """Raises UserError for more than ``LIMIT`` trials, ``runs`` of each point, unless
        ``large``.
        """
        size = self.space.size() * runs
        if size > LIMIT and not self.large:
            raise UserError(
                f"{self.source.file.where('space')}: space: {size} trials, more than {LIMIT}; "
                "make it smaller, or say --large"
            )

    def resolve(self, point: Point, *, tuning: int = 0) -> Iterator[Trial]:
        """A trial per seed; or as many as ``tuning``, on seeds that no point measures on."""
        try:
            first = load(self.base, {**self.spec.overrides, **point.overrides})
        except UserError as error:
            raise UserError(self._place(str(error))) from None
        steps, size = first.steps, first.model.size
        tokens = None if steps is None else steps * first.tokens_per_step
        flops = None if tokens is None else float(tokens * first.flops_per_token)
        self._check(first, flops)
        identity = trial_hash(replace(first, seed=0), self.spec.function)
        if tuning:
            seeds = tuning_seeds(self.space, size, first.seed, tuning)
            identity += "-tuning"  # its runs are no replicates of the measuring ones
        else:
            seeds = self.space.seeds_at(size, first.seed)
        for seed in seeds:
            config = replace(first, seed=seed)
            entry = Entry(
                hash=trial_hash(config, self.spec.function),
                point=identity,
                params=point.params,
                variant=config.variant,
                size=size,
                seed=seed,
                run_name=config.run_name,
                num_params=num_params(config.model).non_embedding,
                flops=flops,
                tokens=tokens,
                tuning=bool(tuning),
            )
            yield Trial(entry, config)

    def _check(self, config: RunConfig, flops: float | None) -> None:
        """Raises UserError for a run that the resources or its budget do not fit."""
        file = self.source.file
        if wrong := self.spec.resources.misfit(config.train):
            raise UserError(f"{file.where(wrong.partition(':')[0])}: {wrong}")
        if wrong := misspent(config, {"flops": flops}):
            where = file.where("space.budget" if "budget" in self.spec.space else "space")
            raise UserError(
                f"{where}: budget: {config.run_name}: {wrong}; set train.batch_size lower, "
                "or the budget higher"
            )

    def _place(self, message: str) -> str:
        """A config error told at the line of this sweep file that caused it, where one did."""
        _, key, rest = (*message.split(": ", 2), "", "")[:3]
        own = self.source.file
        given = {f"space.{axis.key}": {axis.key, *sets(axis)} for axis in self.space.axes}
        for place, keys in (given | {f"overrides.{k}": {k} for k in self.spec.overrides}).items():
            if any(f"{key}.".startswith(f"{k}.") for k in keys):
                return f"{own.where(place)}: {key}: {rest}"
        if self.spec.tune and f"{key}.".startswith(f"{self.spec.tune.key}."):
            return f"{own.where('tune.key')}: tune.key: {key}: {rest}"
        return message


class Search(Plan):
    """Points that an Optuna sampler proposes, until there are as many as the sweep asks for."""

    def __init__(self, source: SpecFile, folder: SweepFolder) -> None:
        super().__init__(source)
        self.folder = folder

    def known(self) -> list[Trial]:
        """The trials of the points proposed so far. A point that the space no longer holds keeps
        its folder, but is not part of the plan.
        """
        trials: list[Trial] = []
        for params in {e.point: e.params for e in self.folder.plan()}.values():
            with suppress(KeyError):
                known = dict(params)
                place = self.space.propose(lambda axis: known[axis.key])  # noqa: B023
                trials += self.resolve(place)
        return trials

    def more(self, trials: Mapping[str, Trial], study: OptunaStudy) -> list[Trial]:
        """The trials of the next new point; one that was proposed before counts as proposed, one
        that makes no run is told to the sampler as failed. Raises UserError for ``DRAWN`` of these
        in a row.
        """
        points: dict[str, list[str]] = {}
        refused = 0
        for trial in trials.values():
            points.setdefault(trial.entry.point, []).append(trial.entry.hash)
        while study.proposed(points) < (self.spec.trials or 0):
            place = study.propose()
            try:
                new = list(self.resolve(place))
            except UserError as error:
                study.refuse(f"proposed, and makes no run: {error}")
                if (refused := refused + 1) == DRAWN:
                    raise
                continue
            refused = 0
            if (point := new[0].entry.point) not in points:
                return new
            study.bind(point, sorted(points[point]))
        return []

    def prospect(self) -> list[Prospect]:
        """Points drawn evenly from the space share what is expected; at most every one costs what
        the most expensive of them and of the space's corners costs. Raises UserError where none of
        them makes a run.
        """
        space = self.space
        points, whole = self.spec.trials or 0, space.size()  # 0 of a space with intervals
        if 0 < whole <= DRAWN:
            even, corners = list(space.points()), list[Point]()
        else:
            draw = random.Random(0)
            even = [space.propose(partial(_drawn, draw)) for _ in range(DRAWN)]
            corners = [space.propose(partial(_corner, draw)) for _ in range(DRAWN)]
        runs = (min(points, whole) if whole else points) * space.replicates
        runs = min(runs, self.spec.stop.trials or runs)
        inner, outer = self._made(even), self._made(corners)
        dearest = max([*inner, *outer], key=lambda trial: trial.entry.flops or 0.0)
        found = [Prospect(trial, runs / len(inner), 0.0) for trial in inner]
        return [*found, Prospect(dearest, 0.0, runs)]

    def _made(self, points: list[Point]) -> list[Trial]:
        """A trial of each point that makes a run; what does not is refused when it is proposed."""
        found, refused = list[Trial](), list[UserError]()
        for point in points:
            try:
                found.append(next(self.resolve(point)))
            except UserError as error:
                refused.append(error)
        if refused and not found:
            raise refused[0]
        return found


class Tuned(Plan):
    """The plan of a sweep under ``tune``: what ``Tuning`` says of the results on disk."""

    def __init__(self, source: SpecFile, folder: SweepFolder, *, large: bool = False) -> None:
        super().__init__(source, large=large)
        assert self.spec.tune
        self.limit(self.space.replicates + MOST * self.spec.tune.seeds)
        self.tuning, self.losses = Tuning(self), losses_in(folder, self.spec)

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

    def settled(self) -> bool:
        """Once every cell has chosen."""
        return self.tuning.settled(self.losses)


def _drawn(draw: random.Random, axis: Axis) -> Scalar:
    """A value of the axis, each as likely as another."""
    if not isinstance(axis.values, Interval):
        return draw.choice(axis.values).label
    low, high, part = axis.values.low, axis.values.high, draw.random()
    value = low * (high / low) ** part if axis.values.log else low + (high - low) * part
    return round(value) if axis.values.whole else value


def _corner(draw: random.Random, axis: Axis) -> Scalar:
    """An end of an interval, any other value."""
    ends = axis.values
    return draw.choice((ends.low, ends.high)) if isinstance(ends, Interval) else _drawn(draw, axis)


def make_plan(source: SpecFile, folder: SweepFolder, *, large: bool = False) -> Plan:
    """The plan that the sweep file asks for. Raises as ``check_source``."""
    check_source(source)
    if source.spec.tune:
        return Tuned(source, folder, large=large)
    return Search(source, folder) if source.spec.adaptive else Plan(source, large=large)
