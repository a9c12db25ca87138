"""From a space to trials: every point and seed resolved to a config, with its content hash and its
cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from attnres_lab.config import RunConfig, content_hash, load
from attnres_lab.errors import UserError
from attnres_lab.model.flops import num_params
from attnres_lab.runs.folder import DONE, read_json
from attnres_lab.runs.sweep import Entry, SweepFolder
from attnres_lab.runs.tuning import MOST
from attnres_lab.shipped import find
from attnres_lab.sweep.rules import number
from attnres_lab.sweep.space import Point, Space, parse_space
from attnres_lab.sweep.spec import SpecFile, SweepSpec
from attnres_lab.sweep.trials import Trial
from attnres_lab.sweep.tuning import Losses, Tuning, tuning_seeds
from attnres_lab.yamlfile import YamlFile

if TYPE_CHECKING:  # Optuna, which a plain grid has no need of here
    from attnres_lab.sweep.optuna_study import OptunaStudy

LIMIT = 10_000


class Plan(Protocol):
    """Which trials a sweep has: all at once (``Grid``), one point after the other (``Search``), or
    some first and the others once those are done (``Tuned``).

    To plug in another kind, write a class with these two methods and have ``make_plan`` return it;
    the engine needs nothing else. Trials come from ``Planner.resolve``, and both methods answer
    from what is on disk and in ``trials`` alone, so that after a crash they answer the same.
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


class Planner:
    """Resolves points of one sweep file. Raises UserError for a base, an override or a space that
    makes no run.
    """

    def __init__(self, source: SpecFile) -> None:
        self.source = source
        self.spec = source.spec
        path = source.file.path.parent / self.spec.base
        try:
            self.base = YamlFile(path if path.is_file() else find(self.spec.base, "experiments"))
        except UserError as error:
            raise UserError(f"{source.file.where('base')}: base: {error}") from None
        self.space: Space = parse_space(self.spec.space, source.file, adaptive=self.spec.adaptive)
        if self.spec.adaptive or self.spec.pruner:
            from attnres_lab.sweep.optuna_study import make_pruner, make_sampler

            try:
                make_sampler(self.spec, 0), make_pruner(self.spec)
            except UserError as error:
                raise UserError(
                    f"{source.file.where(str(error).split(': ')[0])}: {error}"
                ) from None

    def grid(self, *, large: bool = False) -> list[Trial]:
        """Every trial of a grid; the same resolved config is one trial. Raises UserError for more
        than ``LIMIT``, unless ``large``.
        """
        self.limit(self.space.replicates, large=large)
        trials: dict[str, Trial] = {}
        for point in self.space.points():
            for trial in self.resolve(point):
                trials.setdefault(trial.entry.hash, trial)
        return list(trials.values())

    def limit(self, runs: int, *, large: bool) -> None:
        """Raises UserError for more than ``LIMIT`` trials, ``runs`` of each point, unless
        ``large``.
        """
        size = self.space.size() * runs
        if size > LIMIT and not large:
            raise UserError(
                f"{self.source.file.where('space')}: space: {size} trials, more than {LIMIT}; "
                "make it smaller, or say --large"
            )

    def resolve(self, point: Point, *, tuning: int = 0) -> Iterator[Trial]:
        """A trial per seed; or as many as ``tuning``, on seeds that no point measures on."""
        first = self.config(point)
        size, identity = first.model.size, content_hash(replace(first, seed=0))
        if tuning:
            seeds = tuning_seeds(self.space, size, first.seed, tuning)
            identity += "-tuning"  # its runs are no replicates of the measuring ones
        else:
            seeds = self.space.seeds_at(size, first.seed)
        for seed in seeds:
            config = replace(first, seed=seed)
            yield Trial(_entry(config, identity, point, tuning=bool(tuning)), config)

    def config(self, point: Point) -> RunConfig:
        """The config of a point at the base's seed. Raises UserError for one that makes no run."""
        overrides = {**self.spec.overrides, **point.overrides}
        try:
            first = load(self.base, overrides)
        except UserError as error:
            raise UserError(self._place(str(error))) from None
        if wrong := self.spec.resources.misfit(first.train):
            raise UserError(f"{self.source.file.where(wrong.partition(':')[0])}: {wrong}")
        if wrong := misspent(first, {"flops": _entry(first, "", point).flops}):
            where = self.source.file.where(
                "space.budget" if "budget" in self.spec.space else "space"
            )
            raise UserError(
                f"{where}: budget: {first.run_name}: {wrong}; set train.batch_size lower, "
                "or the budget higher"
            )
        return first

    def _place(self, message: str) -> str:
        """A config error told at the line of this sweep file that caused it, where one did."""
        _, key, rest = (*message.split(": ", 2), "", "")[:3]
        own = self.source.file
        for section in ("space", "overrides"):
            for given in self.spec.space if section == "space" else self.spec.overrides:
                points = self.spec.space.get(given) if section == "space" else None
                sets = (
                    [given, *(k for p in points.values() if isinstance(p, dict) for k in p)]
                    if isinstance(points, dict)
                    else [given]
                )
                if any(f"{key}.".startswith(f"{k}.") for k in sets):
                    return f"{own.where(f'{section}.{given}')}: {key}: {rest}"
        if self.spec.tune and f"{key}.".startswith(f"{self.spec.tune.key}."):
            return f"{own.where('tune.key')}: tune.key: {key}: {rest}"
        return message


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


def misspent(config: RunConfig, result: Mapping[str, Any]) -> str:
    """Why a run of a FLOP budget is no IsoFLOP run: it spends more than 1 % more or less. Empty
    where all is well.
    """
    budget, spent = config.budget, result.get("flops")
    if budget.unit != "flops" or spent is None or abs(spent / budget.value - 1) <= 0.01:
        return ""
    return f"whole steps spend {spent:.4g} FLOPs of a budget of {budget}, more than 1 % off"


def _entry(config: RunConfig, point_hash: str, point: Point, *, tuning: bool = False) -> Entry:
    steps = config.steps
    tokens = None if steps is None else steps * config.tokens_per_step
    return Entry(
        hash=content_hash(config),
        point=point_hash,
        params=point.params,
        variant=config.variant,
        size=config.model.size,
        seed=config.seed,
        run_name=config.run_name,
        num_params=num_params(config.model).non_embedding,
        flops=None if tokens is None else float(tokens * config.flops_per_token),
        tokens=tokens,
        tuning=tuning,
    )
