"""From a space to trials: every point and seed resolved to a config, with its content hash and its
cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from attnres_lab.config import RunConfig, content_hash, load
from attnres_lab.errors import UserError
from attnres_lab.model.flops import num_params
from attnres_lab.runs.sweep import Entry
from attnres_lab.shipped import find
from attnres_lab.sweep.space import Point, Space, parse_space
from attnres_lab.sweep.spec import SpecFile
from attnres_lab.yamlfile import YamlFile

LIMIT = 10_000


@dataclass(frozen=True)
class Trial:
    """A plan entry with its resolved config."""

    entry: Entry
    config: RunConfig


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
            # Optuna, which a plain grid has no need of here
            from attnres_lab.sweep.study import (
                make_pruner,
                make_sampler,
            )

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
        size = self.space.size() * self.space.replicates
        if size > LIMIT and not large:
            raise UserError(
                f"{self.source.file.where('space')}: space: {size} trials, more than {LIMIT}; "
                "make it smaller, or say --large"
            )
        trials: dict[str, Trial] = {}
        for point in self.space.points():
            for trial in self.resolve(point):
                trials.setdefault(trial.entry.hash, trial)
        return list(trials.values())

    def resolve(self, point: Point) -> Iterator[Trial]:
        """A trial per seed."""
        overrides = {**self.spec.overrides, **point.overrides}
        try:
            first = load(self.base, overrides)
        except UserError as error:
            raise UserError(self._place(str(error))) from None
        if first.train.devices * first.train.nodes > max(1, self.spec.resources.devices):
            raise UserError(
                f"{self.source.file.where('resources')}: resources.devices: the run wants "
                f"train.devices = {first.train.devices}"
            )
        if wrong := misspent(first, {"flops": _entry(first, "", point).flops}):
            where = self.source.file.where(
                "space.budget" if "budget" in self.spec.space else "space"
            )
            raise UserError(
                f"{where}: budget: {first.run_name}: {wrong}; set train.batch_size lower, "
                "or the budget higher"
            )
        identity = content_hash(replace(first, seed=0))
        for seed in self.space.seeds_at(first.model.size, first.seed):
            config = replace(first, seed=seed)
            yield Trial(_entry(config, identity, point), config)

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
        return message


def misspent(config: RunConfig, result: Mapping[str, Any]) -> str:
    """Why a run of a FLOP budget is no IsoFLOP run: it spends more than 1 % more or less. Empty
    where all is well.
    """
    budget, spent = config.budget, result.get("flops")
    if budget.unit != "flops" or spent is None or abs(spent / budget.value - 1) <= 0.01:
        return ""
    return f"whole steps spend {spent:.4g} FLOPs of a budget of {budget}, more than 1 % off"


def _entry(config: RunConfig, point_hash: str, point: Point) -> Entry:
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
    )
