"""Callbacks and loggers that a config names: Lightning's own, or of any installed package."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from attnres_lab.config import RunConfig
from attnres_lab.errors import UserError
from attnres_lab.plugins import imported

Item = str | dict[str, Any]
KINDS: dict[str, type[Any]] = {"callbacks": pl.Callback, "loggers": Logger}


def check_plugged(configs: Iterable[RunConfig]) -> None:
    """Raises UserError, in one line, for a callback or logger that does not import, is none, or
    does not take its arguments; none is made.
    """
    seen: list[tuple[str, Item]] = []
    for config in configs:
        for key in KINDS:
            for item in getattr(config, key):
                if (key, item) not in seen:
                    seen.append((key, item))
                    _class(key, item, Path())


def callbacks(config: RunConfig) -> list[pl.Callback]:
    """A new one of each that the config names. Raises UserError."""
    return [_make("callbacks", item, Path()) for item in config.callbacks]


def loggers(config: RunConfig, folder: Path) -> list[Logger]:
    """A new one of each that the config names; they write into ``folder`` unless told where. Raises
    UserError.
    """
    return [_make("loggers", item, folder) for item in config.loggers]


def given(value: Any) -> Sequence[Any]:
    """A caller's logger, or several, as Lightning takes them."""
    if isinstance(value, bool) or value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


def _make(key: str, item: Item, folder: Path) -> Any:
    kind, options = _class(key, item, folder)
    try:
        return kind(**options)
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{key}: {kind.__module__}.{kind.__name__}: {message}") from error


def _class(key: str, item: Item, folder: Path) -> tuple[type[Any], dict[str, Any]]:
    """The class that is meant, and its arguments."""
    options = {} if isinstance(item, str) else dict(item)
    name = item if isinstance(item, str) else str(options.pop("name"))
    kind = imported(key, name)
    if not (isinstance(kind, type) and issubclass(kind, KINDS[key])):
        wanted = KINDS[key]
        raise UserError(f"{key}: {name}: is no subclass of {wanted.__module__}.{wanted.__name__}")
    signature = inspect.signature(kind)
    if key == "loggers" and "save_dir" in signature.parameters:
        options = {"save_dir": str(folder), **options}
    try:
        signature.bind(**options)
    except TypeError as error:
        raise UserError(
            f"{key}: {name}: {error}; write {{name: {name}, argument: value}}"
        ) from None
    return kind, options
