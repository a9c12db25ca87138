"""YAML to the dataclass tree and back; the only file that knows OmegaConf.

A YAML file is data: it is merged strictly into the tree, and plain frozen objects come out.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError

from attnres_lab.config.budget import UNITS, Budget
from attnres_lab.config.task import TASKS, TaskConfig
from attnres_lab.config.tree import RunConfig
from attnres_lab.data.config import SourceConfig
from attnres_lab.data.images import ImageSourceConfig
from attnres_lab.errors import UserError, nearest
from attnres_lab.mixers import MLPS, MLPConfig
from attnres_lab.residual import REGISTRY, ResidualConfig
from attnres_lab.runs.table import flatten as flat
from attnres_lab.shipped import find
from attnres_lab.yamlfile import YamlFile, parse_value


def load(base: Path | str | YamlFile, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The run that the file ``base`` describes (or the experiment so called: ``tiny``, from any
    folder), with dotted ``overrides`` laid over it.

    Raises UserError with file and line, the key and the nearest valid name for unknown keys, wrong
    types and impossible combinations.
    """
    file = base if isinstance(base, YamlFile) else YamlFile(find(base, "experiments"))
    if "space" in file.data:
        raise UserError(f"{file.path}: this is a sweep file; use attnres sweep run")
    raw: dict[str, Any] = json.loads(json.dumps(file.data))
    for dotted, value in (overrides or {}).items():
        _set(raw, dotted, value)
    try:
        if "budget" not in raw:
            raise _BadKey("budget", f"missing; a value and one of {', '.join(UNITS)}")
        config = _build(RunConfig, json.dumps(raw, sort_keys=False), "")
        assert isinstance(config, RunConfig)
        return config
    except _BadKey as error:
        blamed = any(
            f"{key}.".startswith(f"{error.key}.") or f"{error.key}.".startswith(f"{key}.")
            for key in overrides or {}
        )
        at = "override" if blamed else file.where(error.key)
        raise UserError(f"{at}: {error.key}: {error.message}") from None


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """``["optim.lr=3e-3"]`` to ``{"optim.lr": 0.003}``. Raises UserError."""
    result = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"{word}: overrides are written key=value, for example optim.lr=3e-3")
        result[key] = parse_value(text)
    return result


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a config, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, Budget) else vars(value)

    return json.loads(json.dumps(config, default=plain))  # type: ignore[no-any-return]


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted key to value."""
    return flat(to_dict(config))


def to_yaml(config: RunConfig) -> str:
    """The resolved config; ``load`` of it gives an equal config."""
    return str(OmegaConf.to_yaml(OmegaConf.create(to_dict(config))))


#: Settings that do not change what is learned on one machine: not part of a run's identity.
INCIDENTAL = (
    "name",
    "init_from",  # what lies there counts: init_digest
    "loggers",
    "data.cache_dir",
    "train.log_every",
    "train.checkpoint_every",
    "train.probe_every",
)


#: Keys and sections that came later; those of variants are in ``ResidualConfig.later``. Where they
#: are at their default they are left out of a run's identity, so that the runs from before keep
#: theirs.
LATER = (
    *("model.mixers.", "model.mlp.", "optim.query_", "optim.residual_clip", "task."),
    *("model.scale_embeddings", "optim.freeze_trunk", "optim.lora.", "init_"),
    "train.pipeline.",
    "callbacks",
    "train.threads",  # other orders of sums give other last digits
)


def content_hash(config: RunConfig) -> str:
    """Identity of a run: 12 hex digits over the resolved config, without names, folders and the
    frequency of logging.
    """
    residual, filled = config.model.residual, vars(config.model.connection)
    numbers = {k: v for k, v in filled.items() if v != getattr(residual, k)}  # heads: kv is one
    default = _default() | _under("model.residual", vars(type(residual)()))
    later = (*LATER, *(f"model.residual.{key}" for key in residual.later))
    value = {
        key: item
        for key, item in (flatten(config) | _under("model.residual", numbers)).items()
        if key not in INCIDENTAL
        and not (key.startswith(later) and key in default and default[key] == item)
    }
    if not value["train.val_every"]:
        value["train.val_every"] = None  # 0 and the default give the same result
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _under(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for key, value in values.items()}


@lru_cache(maxsize=1)
def _default() -> dict[str, Any]:
    return flatten(RunConfig())


#: Sections that are known by a name, and may be given as the name alone.
NAMED = (ResidualConfig, SourceConfig, MLPConfig, TaskConfig, ImageSourceConfig)
#: Sections whose class depends on the name: what it is called, its default, the classes.
CLASSES: dict[Any, tuple[str, str, Mapping[str, Any]]] = {
    ResidualConfig: ("variant", "baseline", REGISTRY),
    MLPConfig: ("channel mixer", "swiglu", MLPS),
    TaskConfig: ("task", "language", TASKS),
}

#: Where those sections are.
SECTIONS = ("model.residual", "model.mlp", "data.source", "task", "task.source")


class _BadKey(Exception):
    def __init__(self, key: str, message: str) -> None:
        self.key, self.message = key, message


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key; another ``name`` of a variant or source drops the options of the one
    before.
    """
    *parents, last = dotted.split(".")
    node = raw
    for part in parents:
        child = node.get(part)
        if not isinstance(child, dict):
            child = node[part] = {"name": child} if isinstance(child, str) else {}
        node = child
    if last == "name" and ".".join(parents) in SECTIONS and node.get("name") != value:
        node.clear()
    node[last] = copy.deepcopy(value)  # a later key may change it, and it is the caller's


@lru_cache(maxsize=4096)
def _build(cls: Any, raw_json: str, prefix: str) -> Any:
    """One dataclass from its JSON. Cached by section: a large grid varies few sections."""
    raw = json.loads(raw_json)
    if cls is Budget:
        try:
            return Budget.parse(raw)
        except ValueError as error:
            raise _BadKey(prefix, str(error).removeprefix("budget: ")) from None
    if isinstance(raw, str) and cls in NAMED:
        raw = {"name": raw}
    if not isinstance(raw, dict):
        raise _BadKey(prefix, f"a mapping is expected, got {raw!r}")
    if cls in CLASSES:
        kind, default, classes = CLASSES[cls]
        name = raw.get("name", default)
        try:
            found = classes[name]
        except (KeyError, TypeError):
            message = f"unknown {kind} '{name}'{nearest(str(name), classes)}"
            raise _BadKey(f"{prefix}.name", message) from None
        except UserError as error:  # of another package
            raise _BadKey(f"{prefix}.name", str(error)) from None
        cls = getattr(found, "Config", found)
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    leaves = {}
    for key, value in raw.items():
        dotted = f"{prefix}.{key}" if prefix else key
        if key not in names:
            raise _BadKey(dotted, f"unknown key{_owners(cls, key) or nearest(key, names)}")
        if dataclasses.is_dataclass(hints[key]):
            values[key] = _build(hints[key], json.dumps(value), dotted)
        else:
            leaves[key] = value
    values.update(_leaves(cls, leaves, prefix))
    try:
        return cls(**values)
    except ValueError as error:
        key, _, message = str(error).partition(": ")
        raise _BadKey(key, message) from None


def _owners(cls: Any, key: str) -> str:
    """Which other variants have the option that this one does not; empty where none does."""
    if not issubclass(cls, ResidualConfig):
        return ""
    owners = [
        name
        for name, variant in REGISTRY.loaded.items()
        if key in {f.name for f in dataclasses.fields(variant.Config)}
    ]
    return f" of {cls().name}; set model.residual.name: {' or '.join(owners)}" if owners else ""


def _leaves(cls: type[Any], leaves: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Typed values, one key at a time so that an error names its key."""
    result = {}
    for key, value in leaves.items():
        dotted = f"{prefix}.{key}" if prefix else key
        hint, adapter = _adapter(typing.cast(typing.Hashable, cls), key)
        if isinstance(value, str) and "${" in value:
            raise _BadKey(dotted, "interpolation is not supported; write the value out")
        if isinstance(value, bool) and "bool" not in hint:
            raise _BadKey(dotted, f"{value} is true or false, another type is expected")
        if hint.endswith("...]") and not isinstance(value, list):
            value = [value]  # one path is a list of one
        try:
            result[key] = adapter.validate_json(json.dumps(value))  # 1e3 is a whole number too
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            message = problem["msg"].replace("Input should", "should")
            raise _BadKey(dotted, f"{message}, got {problem['input']!r}") from None
    return result


@lru_cache
def _adapter(cls: Any, key: str) -> tuple[str, TypeAdapter[Any]]:
    """The type of a leaf, and what makes a value of it."""
    hint = typing.get_type_hints(cls)[key]
    numbers = ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True)
    return str(hint), TypeAdapter(hint, config=numbers)
