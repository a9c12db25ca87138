"""Callbacks and loggers that a config names: Lightning's own, or of any installed package."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping, Sequence
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
        _bind(kind, options)
    except TypeError as error:
        raise UserError(
            f"{key}: {name}: {error}; write {{name: {name}, argument: value}}"
        ) from None
    return kind, options


def _bind(kind: type[Any], options: Mapping[str, Any]) -> None:
    """Raises TypeError for arguments that ``kind`` takes as ``**kwargs`` and hands on to a base
    class that does not take them.
    """
    count, given = 0, dict(options)
    for base in kind.__mro__:
        init: Any = vars(base).get("__init__")
        if init is None:
            continue
        if base is object:
            inspect.Signature().bind(**given)
            return
        signature = inspect.signature(init)
        bound = signature.bind(*[None] * (1 + count), **given).arguments
        rest = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
        call = _handed_on(init, rest[0]) if rest else None
        if call is None:
            return
        count, names = call
        given = bound.get(rest[0], {})
        if twice := sorted(set(names) & set(given)):
            raise TypeError(f"{twice[0]!r} is no argument: the class sets it itself")
        given = dict.fromkeys(names) | given


def _handed_on(init: Any, rest: str) -> tuple[int, list[str]] | None:
    """The number of positional arguments and the names of the others in ``super().__init__(...,
    **rest)``; None where ``init`` does anything else with what is in ``rest``.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(init)))
    except (OSError, TypeError, SyntaxError):
        return None
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == rest]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        handed = [k.value for k in call.keywords if k.arg is None]
        plain = not any(isinstance(argument, ast.Starred) for argument in call.args)
        if handed == uses and plain and ast.unparse(call.func).startswith("super("):
            return len(call.args), [k.arg for k in call.keywords if k.arg]
    return None
