"""From a space to trials: every point and seed resolved to a config, with its content hash and its
cost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from attnres_lab.config import RunConfig, content_hash, load
from attnres_lab.errors import UserError
from attnres_lab.model.flops import num_params
from attnres_lab.runs.sweep import Entry, SweepFolder
from attnres_lab.shipped import find
from attnres_lab.sweep.space import Point, Space, parse_space
from attnres_lab.sweep.spec import TRAIN, SpecFile
from attnres_lab.sweep.trials import Trial
from attnres_lab.sweep.tuning import tuning_seeds
from attnres_lab.yamlfile import YamlFile

LIMIT = 10_000


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
        size, identity = first.model.size, self.identity(replace(first, seed=0))
        if tuning:
            seeds = tuning_seeds(self.space, size, first.seed, tuning)
            identity += "-tuning"  # its runs are no replicates of the measuring ones
        else:
            seeds = self.space.seeds_at(size, first.seed)
        for seed in seeds:
            config = replace(first, seed=seed)
            entry = _entry(config, identity, point, tuning=bool(tuning))
            yield Trial(replace(entry, hash=self.identity(config)), config)

    def identity(self, config: RunConfig) -> str:
        """The hash of a trial."""
        return trial_hash(config, self.spec.function)

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


def trial_hash(config: RunConfig, function: str) -> str:
    """Of the config, and where a function of the user's takes the place of training, of its place,
    module:name.
    """
    trained = content_hash(config)
    if function == TRAIN:
        return trained
    return hashlib.sha256(f"{trained} {function}".encode()).hexdigest()[:12]


def check_named(trials: list[Trial]) -> None:
    """Raises UserError for a callback or logger of a trial that cannot be had."""
    if named := [t.config for t in trials if t.config.callbacks or t.config.loggers]:
        from attnres_lab.training.plugged import check_plugged  # Lightning, which few plans need

        check_plugged(named)


def changes(source: SpecFile, folder: SweepFolder, trials: list[Trial]) -> Iterator[str]:
    """What a run will do to a sweep of this name that ran before; nothing where it only goes on."""
    facts, now = folder.facts(), {t.entry.hash for t in trials}
    before, file = str(facts.get("file", "")), str(source.file.path.resolve())
    if before and before != file:
        yield (
            f"another file of the name '{source.spec.name}': {before} before, {file} now; its plan "
            f"takes the place of that one's in {folder.path}; another name keeps both"
        )
    gone = [e for e in folder.plan() if e.hash not in now and folder.trial(e.hash).path.exists()]
    if gone:
        kept = len(now & {e.hash for e in folder.plan()})
        yield (
            f"the plan has changed: {kept} of its {len(now)} trials were planned before; "
            f"{len(gone)} that ran before are no part of it: their folders stay, and no status, "
            "report or export counts them"
        )


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
