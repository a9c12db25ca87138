"""The trials of a sweep under ``tune``, by the results there are: first those that find each cell's
best value, then those that measure the cell there.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from attnres_lab.errors import UserError, nearest
from attnres_lab.runs.files import number
from attnres_lab.runs.folder import DONE, read_json
from attnres_lab.runs.sweep import Entry, SweepFolder
from attnres_lab.runs.tuning import Choice, along, next_steps, value_at
from attnres_lab.sweep.schema import SIZE, VARIANT, SweepSpec, Tune
from attnres_lab.sweep.space import MOST_SEEDS, Point, Space, every
from attnres_lab.sweep.trials import Trial

if TYPE_CHECKING:
    from attnres_lab.sweep.plan import Plan

#: What a trial came to, by its hash: lower is better, infinite where it diverged or was given up,
#: None as long as it has no result.
Losses = Callable[[str], float | None]
#: Values that a cell tries on average (docs/results/001-coverage), for prices.
EXPECTED = 4.0
#: Steps from the start that a law may lead to; further away it says nothing.
REACH = 20.0


@dataclass(frozen=True)
class Cell:
    """The points that share one value; ``params``: non-embedding parameters of the first."""

    labels: tuple[str, ...]
    points: tuple[Point, ...]
    params: int


class Tuning:
    """The cells of a sweep file and their trials. Raises UserError for a section ``tune`` that does
    not fit the space.
    """

    def __init__(self, plan: Plan) -> None:
        assert plan.spec.tune
        self.plan, self.tune = plan, plan.spec.tune
        _check(plan, self.tune)
        self.cells = _cells(plan, self.tune)
        self.tuned = self._tuned()
        self.given = self._given() if self.tune.values is not None else {}
        self._resolved: dict[tuple[tuple[str, ...], float, bool], list[Trial]] = {}

    def trials(self, losses: Losses) -> list[Trial]:
        """Every trial that is known to be needed, those with a result among them: the same for the
        same results, and never one less for one result more.
        """
        found: dict[str, Trial] = {}
        choices: dict[tuple[str, ...], Choice] = {}
        for cell in self.tuned:
            tried, choice = self._try(cell, losses)
            found |= tried
            if choice:
                choices[cell.labels] = choice
        for cell in self.cells:
            if (value := self._value(cell, choices)) is not None:
                found |= {t.entry.hash: t for t in self._at(cell, value, tuning=False)}
        return list(found.values())

    def prospect(self) -> list[tuple[Trial, int, int]]:
        """For prices, whatever has run: one trial of each point, its measuring runs, and its tuning
        runs for each value tried.
        """
        measuring, tuned = self.plan.space.replicates, {cell.labels for cell in self.tuned}
        return [
            (next(self.plan.resolve(p)), measuring, self.tune.seeds * (cell.labels in tuned))
            for cell in self.cells
            for p in cell.points
        ]

    def settled(self, losses: Losses) -> bool:
        """Whether every cell that is tuned has chosen, so that no further trial can come."""
        return all(self._try(cell, losses)[1] for cell in self.tuned)

    def _try(self, cell: Cell, losses: Losses) -> tuple[dict[str, Trial], Choice | None]:
        """The cell's tuning trials so far, and what they choose once they have all ended."""
        assert self.tune.start
        found: dict[str, Trial] = {}
        by_step: dict[int, float] = {}
        while not isinstance(asked := next_steps(by_step), Choice):
            results: dict[int, list[float | None]] = {}
            for step in asked:
                trials = self._at(cell, self._on_grid(step), tuning=True)
                found |= {trial.entry.hash: trial for trial in trials}
                results[step] = [losses(trial.entry.hash) for trial in trials]
            known = {
                step: math.fsum(values) / len(values)
                for step, some in results.items()
                if len(values := [v for v in some if v is not None]) == len(some)
            }
            if len(known) < len(asked):
                return found, None
            by_step |= known
        return found, asked

    def _value(self, cell: Cell, choices: dict[tuple[str, ...], Choice]) -> float | None:
        """Where the cell is measured; None as long as tuning trials are pending."""
        if self.given:
            return self.given[cell.labels]
        if cell in self.tuned:
            choice = choices.get(cell.labels)
            return self._on_grid(choice.step) if choice else None
        smaller = self._smaller(cell)
        if any(other.labels not in choices for other in smaller):
            return None
        steps = [choices[other.labels].step for other in smaller]
        step = along([other.params for other in smaller], steps, cell.params)
        return self._on_grid(max(-REACH, min(REACH, step)))

    def _on_grid(self, step: float) -> float:
        assert self.tune.start
        return value_at(self.tune.start, self.tune.factor, step)

    def _at(self, cell: Cell, value: float, *, tuning: bool) -> list[Trial]:
        key = (cell.labels, value, tuning)
        if key not in self._resolved:
            places = [_placed(point, self.tune.key, value) for point in cell.points]
            runs = self.tune.seeds if tuning else 0
            self._resolved[key] = [t for p in places for t in self.plan.resolve(p, tuning=runs)]
        return self._resolved[key]

    def _tuned(self) -> list[Cell]:
        """The cells that are tuned by runs of their own. Raises UserError where the smallest sizes
        do not give a line.
        """
        if self.tune.values is not None:
            return []
        if self.tune.sizes is None:
            return self.cells
        place = self.tune.per.index(SIZE)
        smallest = sorted({(cell.params, cell.labels[place]) for cell in self.cells})
        names = list(dict.fromkeys(name for _, name in smallest))[: self.tune.sizes]
        tuned = [cell for cell in self.cells if cell.labels[place] in names]
        for cell in self.cells:
            if cell not in tuned and len(self._smaller(cell, tuned)) < 2:
                raise UserError(
                    f"{self._where('from')}: tune.from: {', '.join(cell.labels)}: fewer than two "
                    "of the smallest sizes to draw a line through"
                )
        return tuned

    def _smaller(self, cell: Cell, tuned: list[Cell] | None = None) -> list[Cell]:
        """The tuned cells that differ from this one in their size alone."""
        place = self.tune.per.index(SIZE)

        def rest(other: Cell) -> tuple[str, ...]:
            return other.labels[:place] + other.labels[place + 1 :]

        return [c for c in (self.tuned if tuned is None else tuned) if rest(c) == rest(cell)]

    def _given(self) -> dict[tuple[str, ...], float]:
        """The values of the sweep file, by cell. Raises UserError for one that is missing, is no
        positive number, or is no cell's.
        """
        leaves = dict(_leaves(self.tune.values, len(self.tune.per)))
        known = {cell.labels for cell in self.cells}
        for labels in sorted(known - set(leaves)):
            raise UserError(
                f"{self._where('values')}: tune.values: no value for {'.'.join(labels)}"
            )
        for labels, value in leaves.items():
            name = ".".join(labels)
            if labels not in known:
                close = nearest(name, [".".join(k) for k in known])
                raise UserError(
                    f"{self._where('values')}: tune.values.{name}: no such cell{close}; a cell is "
                    f"{', '.join(self.tune.per)}"
                )
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise UserError(
                    f"{self._where('values')}: tune.values.{name}: should be a positive number, "
                    f"got {value!r}"
                )
        return leaves

    def _where(self, key: str) -> str:
        return self.plan.source.file.where(f"tune.{key}")


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


def tuning_seeds(space: Space, size: str, default: int, count: int) -> tuple[int, ...]:
    """Seeds of this model size that no point of it measures on, whatever ``each`` grows to as long
    as both fit into ``MOST_SEEDS``, which a sweep under ``tune`` sees to.
    """
    measured = set(space.seeds_at(size, default))
    last = zlib.crc32(size.encode()) % 10**6 * MOST_SEEDS + MOST_SEEDS - 1
    free = (seed for seed in range(last, -1, -1) if seed not in measured)
    return tuple(itertools.islice(free, count))


def _cells(plan: Plan, tune: Tune) -> list[Cell]:
    """In the order of the space."""
    cells: dict[tuple[str, ...], Cell] = {}
    for point in plan.space.points():
        entry = next(plan.resolve(point)).entry
        labels = tuple(str(_label(name, entry)) for name in tune.per)
        cell = cells.setdefault(labels, Cell(labels, (), entry.num_params))
        cells[labels] = replace(cell, points=(*cell.points, point))
    return list(cells.values())


def _label(name: str, entry: Entry) -> Any:
    """A conditional axis that a point does not have is a label of its own."""
    if name in (SIZE, VARIANT):
        return getattr(entry, name)
    return entry.params.get(name, "")


def _placed(point: Point, key: str, value: float) -> Point:
    return Point({**point.params, key: value}, {**point.overrides, key: value})


def _check(plan: Plan, tune: Tune) -> None:
    """Raises UserError for a label that is none, for a key that something else sets, and for more
    seeds than a size has.
    """
    file, axes = plan.source.file, list(every(plan.space.axes))
    each, tuning = plan.space.each, 0 if tune.values is not None else tune.seeds
    if each + tuning > MOST_SEEDS:
        raise UserError(
            f"{file.where('space.seed')}: space.seed: each is {each} and tune.seeds {tuning}, but "
            f"a size has {MOST_SEEDS} seeds in all; set each to {MOST_SEEDS - tuning} at most"
        )
    known = [SIZE, VARIANT, *(axis.key for axis in axes)]
    for name in tune.per:
        if name not in known:
            raise UserError(
                f"{file.where('tune.per')}: tune.per: no label or axis is called "
                f"'{name}'{nearest(name, set(known))}"
            )
    for axis in axes:
        for key in (key for choice in axis.choices for key in _keys(choice.overrides)):
            if f"{key}.".startswith(f"{tune.key}."):
                raise UserError(
                    f"{file.where('tune.key')}: tune.key: {tune.key} is set by space.{axis.key} "
                    "too; leave one out"
                )
    for key in plan.spec.overrides:
        if f"{key}.".startswith(f"{tune.key}."):
            raise UserError(
                f"{file.where('tune.key')}: tune.key: {tune.key} is set by overrides too; leave "
                "one out"
            )


def _keys(overrides: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key that is set, sections key by key."""
    for key, value in overrides.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _leaves(
    tree: Any, depth: int, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    if depth == 0 or not isinstance(tree, dict):
        yield path, tree
    else:
        for label, branch in tree.items():
            yield from _leaves(branch, depth - 1, (*path, str(label)))
