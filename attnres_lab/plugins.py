"""Classes by name, also those that installed packages declare as entry points, and what a dotted
name means.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from attnres_lab.errors import UserError

T = TypeVar("T")
#: Where a name that a config gives must come from.
PLACE = (
    "it must be importable from where attnres runs, as a module of an installed package or on "
    "PYTHONPATH"
)


def imported(key: str, name: str) -> Any:
    """What the dotted ``name`` (``package.module.Class``) means, for the config key ``key``. Raises
    UserError where there is none.
    """
    module, _, attribute = name.rpartition(".")
    if not module or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{key}: {name!r} is no dotted name; write package.module.Class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing runs code of others
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{key}: {name}: {why}; {PLACE}") from None


class Registry(Mapping[str, type[T]]):
    """The package's ``own`` classes, and those of other packages' entry points in ``group``, which
    are subclasses of ``base``. An entry point is imported when its name is asked for; a name of our
    own cannot be taken.

    Asking raises KeyError for an unknown name, UserError for an entry point that is of no use.
    """

    def __init__(self, group: str, base: type[Any], own: Mapping[str, type[T]]) -> None:
        self.group, self.base, self.loaded = group, base, dict(own)

    def __getitem__(self, name: str) -> type[T]:
        if name not in self.loaded:
            found = [point for point in self._points() if point.name == name]
            if not found:
                raise KeyError(name)
            self.loaded[name] = self._load(found)
        return self.loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.loaded, *(point.name for point in self._points())]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _points(self) -> list[EntryPoint]:
        return sorted(entry_points(group=self.group), key=lambda point: point.name)

    def _load(self, found: list[EntryPoint]) -> type[T]:
        point, places = found[0], sorted({point.value for point in found})
        where = f"'{point.name}', an entry point of {self.group}"
        if len(places) > 1:
            raise UserError(f"{where}, is declared twice: {', '.join(places)}; rename one of them")
        try:
            loaded: Any = point.load()
        except Exception as error:
            raise UserError(
                f"{where}, does not import: {point.value}: {type(error).__name__}: {error}"
            ) from None
        if not (isinstance(loaded, type) and issubclass(loaded, self.base)):
            raise UserError(
                f"{where}: {point.value} is no subclass of {self.base.__module__}."
                f"{self.base.__name__}"
            )
        config: Any = getattr(loaded, "Config", loaded)
        if config().name != point.name:
            raise UserError(
                f"{where}: its config is named '{config().name}'; give both the same name"
            )
        return loaded
