"""The space of a sweep: lists, ranges, conditional mappings and bundles, as axes that can be
enumerated or proposed from.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from attnres_lab.errors import UserError
from attnres_lab.yamlfile import YamlFile

Scalar = bool | int | float | str | None
#: Of one model size, where each has its own.
MOST_SEEDS = 100


@dataclass(frozen=True)
class Choice:
    """One value of an axis: its label, the config keys it sets, and the axes that exist only with
    it.
    """

    label: Scalar
    overrides: dict[str, Any]
    axes: tuple[Axis, ...] = ()


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, both included; only for samplers that propose."""

    low: float
    high: float
    log: bool

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant: both ends are."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Axis:
    """A key and what it may be."""

    key: str
    values: tuple[Choice, ...] | Interval

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What can be enumerated: nothing of an interval."""
        return () if isinstance(self.values, Interval) else self.values

    def choice(self, label: Scalar) -> Choice:
        """The value of that label. Raises KeyError for a label that is not, or no longer, in the
        space.
        """
        if isinstance(self.values, Interval):
            return Choice(label, {self.key: label})
        return {choice.label: choice for choice in self.values}[label]


@dataclass(frozen=True)
class Point:
    """A place in the space: labels by axis, and the config keys they set. Seeds are not part of
    it.
    """

    params: dict[str, Scalar]
    overrides: dict[str, Any]


@dataclass(frozen=True)
class Space:
    """All axes but ``seed``, and the seeds: replicates of every point (none: the base run's
    seed), the same ones everywhere or ``each`` of its own at every model size.
    """

    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    each: int = 0

    @property
    def replicates(self) -> int:
        """Runs of every point."""
        return self.each or max(1, len(self.seeds))

    def seeds_at(self, size: str, default: int) -> tuple[int, ...]:
        """The seeds of a point of this model size. Seeds of its own follow from the label alone, so
        that all variants of a size share them and a size that is added changes no other's.
        """
        if self.each:
            first = zlib.crc32(size.encode()) % 10**6 * MOST_SEEDS
            return tuple(range(first, first + self.each))
        return self.seeds or (default,)

    def size(self) -> int:
        """Number of points of the grid, without enumerating it."""
        return _size(self.axes)

    def points(
        self, options: Callable[[Axis], Iterable[Choice]] = lambda axis: axis.choices
    ) -> Iterator[Point]:
        """Every point of the grid, the last axis fastest; only the ``options`` of each axis, and of
        the axes that those bring.
        """
        todo: list[tuple[tuple[Axis, ...], Point]] = [(self.axes, Point({}, {}))]
        while todo:
            axes, point = todo.pop()
            if not axes:
                yield point
                continue
            first, *rest = axes
            found = []
            for choice in options(first):
                params = {**point.params, first.key: choice.label}
                here = Point(params, {**point.overrides, **choice.overrides})
                found.append(((*choice.axes, *rest), here))
            todo += reversed(found)

    def propose(self, suggest: Callable[[Axis], Scalar]) -> Point:
        """The point that ``suggest`` chooses, one axis at a time; conditional axes are asked for
        only where they exist. Raises KeyError.
        """
        return next(self.points(lambda axis: (axis.choice(suggest(axis)),)))


def parse_space(raw: Mapping[str, Any], file: YamlFile, *, adaptive: bool) -> Space:
    """Axes from the ``space`` of a sweep YAML. Raises UserError with file, line and key."""
    axes: list[Axis] = []
    seeds: tuple[int, ...] = ()
    each = 0
    for key, value in raw.items():
        try:
            if key == "seed" and isinstance(value, dict) and set(value) == {"each"}:
                each = _each(value["each"])
                continue
            axis = _axis(key, value, adaptive)
            if key == "seed":
                seeds = _seeds(axis)
            else:
                axes.append(axis)
        except ValueError as error:
            raise UserError(f"{file.where(f'space.{key}')}: space.{key}: {error}") from None
    if not raw:
        raise UserError(f"{file.where('space')}: space: empty; for a single run use attnres train")
    owner: dict[str, str] = {}
    for axis in axes:
        for key in sets(axis):
            for other, name in owner.items():
                if name != axis.key and f"{other}.".startswith(f"{key}."):
                    where = f"{file.where(f'space.{axis.key}')}: space.{axis.key}"
                    raise UserError(f"{where}: sets {key}, and so does '{name}'")
            owner[key] = axis.key
    return Space(tuple(axes), seeds, each)


def every(axes: Iterable[Axis]) -> Iterator[Axis]:
    """The axes, and those that exist only with a value of another."""
    for axis in axes:
        yield axis
        for choice in axis.choices:
            yield from every(choice.axes)


def sets(axis: Axis) -> set[str]:
    """Every config key the axis may set."""
    return {key for choice in axis.choices for key in _keys(choice)} or {axis.key}


def _keys(choice: Choice) -> list[str]:
    """What the value sets."""
    return [*choice.overrides, *(key for axis in choice.axes for key in sets(axis))]


def _each(count: Any) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_SEEDS:
        raise ValueError(
            f"each takes a whole number of seeds from 1 to {MOST_SEEDS}, got {count!r}"
        )
    return count


def _seeds(axis: Axis) -> tuple[int, ...]:
    if isinstance(axis.values, Interval):
        raise ValueError("seeds are replicates of every point: list them")
    values = [choice.label for choice in axis.values]
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
        raise ValueError("seeds are whole numbers from 0 on")
    return tuple(v for v in values if isinstance(v, int))


def _axis(key: str, value: Any, adaptive: bool) -> Axis:
    if value is None:
        raise ValueError("empty; give a value or a list")
    if isinstance(value, str | int | float):  # the same as a list of one
        value = [value]
    if isinstance(value, list):
        if not value:
            raise ValueError("an empty list")
        choices = tuple(_choice(key, item, adaptive) for item in value)
    elif _numeric(value):
        numbers = _numbers(*next(iter(value.items())), adaptive=adaptive)
        if isinstance(numbers, Interval):
            return Axis(key, numbers)
        choices = tuple(Choice(number, {key: number}) for number in numbers)
    else:
        choices = _bundle(key, value)
    if len({json.dumps(choice.label) for choice in choices}) < len(choices):
        raise ValueError("the same value is given twice")
    return Axis(key, choices)


def _bundle(key: str, value: Any) -> tuple[Choice, ...]:
    """Named points, each of which sets several keys."""
    points = value if isinstance(value, dict) and "." not in key else {}
    for name, inner in points.items():
        if isinstance(inner, list) or _numeric(inner):
            raise ValueError(
                f"sections are not nested here; write {key}.{name}: {json.dumps(inner)}"
            )
    if not points or not all(isinstance(point, dict) and point for point in points.values()):
        raise ValueError(
            "give a list, {range: [low, high, step]}, {log: [low, high, count]}, or a bundle (an "
            "undotted name with named points)"
        )
    return tuple(
        Choice(str(label), {str(k): v for k, v in point.items()}) for label, point in points.items()
    )


def _numeric(value: Any) -> bool:
    """Whether it is written as a range."""
    return isinstance(value, dict) and set(value) in ({"range"}, {"log"})


def _choice(key: str, item: Any, adaptive: bool) -> Choice:
    """A plain value; or a mapping that replaces the whole section ``key``, in which lists and
    ranges are axes of their own. A list of one is that one.
    """
    if not isinstance(item, dict):
        return Choice(item if isinstance(item, Scalar) else json.dumps(item), {key: item})
    item = {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in item.items()}
    fixed = {k: v for k, v in item.items() if not isinstance(v, list | dict)}
    axes = tuple(_axis(f"{key}.{k}", v, adaptive) for k, v in item.items() if k not in fixed)
    named = [str(fixed["name"])] if "name" in fixed else []
    label = " ".join(named + [f"{k}={v}" for k, v in fixed.items() if k != "name"])
    return Choice(label, {key: fixed}, axes)


def _numbers(kind: str, bounds: Any, *, adaptive: bool) -> Interval | list[int] | list[float]:
    form = f"[low, high, {'step' if kind == 'range' else 'count'}]"
    listed = bounds if isinstance(bounds, list) and len(bounds) in (2, 3) else ["no number"]
    if not all(isinstance(b, int | float) and math.isfinite(b) for b in listed):
        raise ValueError(f"{kind} takes {form}")
    low, high, *rest = bounds
    if not low < high or (kind == "log" and low <= 0) or (rest and rest[0] <= 0):
        raise ValueError(
            f"{kind} takes low < high{' and low > 0' if kind == 'log' else ''}, got {bounds}"
        )
    whole = isinstance(low, int) and isinstance(high, int)
    if not rest and (adaptive or not (whole and kind == "range")):
        if not adaptive:
            end = form.rpartition(" ")[2]
            raise ValueError(f"a grid needs an end: {kind}: [{low}, {high}, {end}")
        return Interval(low, high, kind == "log")
    third = rest[0] if rest else 1
    if kind == "range":
        count = math.floor((high - low) / third + 1e-9) + 1
        return [low + i * third for i in range(min(count, 1_000_001))]
    if not isinstance(third, int) or third < 2:
        raise ValueError(f"log takes a whole count of at least 2, got {third}")
    values = [low * (high / low) ** (i / (third - 1)) for i in range(min(third, 1_000_001))]
    return sorted({round(v) for v in values}) if whole else [float(f"{v:.6g}") for v in values]


def _size(axes: Iterable[Axis]) -> int:
    return math.prod(sum(_size(choice.axes) for choice in axis.choices) for axis in axes)
