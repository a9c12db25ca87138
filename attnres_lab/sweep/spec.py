"""From a sweep file, a study of several scales at one of them, to its spec and its space; its JSON
Schema comes from the dataclasses too. Imports neither torch nor Optuna.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from attnres_lab.errors import UserError, nearest
from attnres_lab.runs.secrets import check_address
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.shipped import find
from attnres_lab.sweep.launchers import DEFAULT, REGISTRY
from attnres_lab.sweep.launchers.base import Strict
from attnres_lab.sweep.process import TRAIN
from attnres_lab.sweep.schema import SweepSpec
from attnres_lab.sweep.space import Space, parse_space
from attnres_lab.yamlfile import YamlFile

#: What all studies share at each scale, beside them.
SHARED = "scales.yaml"
#: What ``result.json`` of a training run holds, beside ``depth/...`` and ``perf/...``.
RESULT = (
    *("val/loss", "val/bpb", "val/accuracy", "train/loss", "step", "tokens", "flops", "flops_6nd"),
    *("seconds", "device_seconds"),
    *("params", "params_total", "params_active"),
    *("peak_memory_bytes", "optim/lr", "optim/grad_norm"),
)


@dataclass(frozen=True)
class SpecFile:
    """A spec with its space and the file they came from."""

    spec: SweepSpec
    space: Space
    file: YamlFile

    @property
    def folder(self) -> SweepFolder:
        """Where the sweep lives."""
        return SweepFolder.named(self.spec.name)


_ADAPTER = TypeAdapter(SweepSpec)
#: What a text that its pattern refuses should have been, by key.
FORMS = {
    "name": "is no name: letters, digits, '.', '_' and '-', at most 100, a letter or digit first",
    "function": "is not written module:function",
    "from": "is not written as: 3 smallest sizes",
    "share": "is not written name:number in a device, for example shard:4 or mps:100",
}
FORM = "may hold letters, digits and . _ : , @ % + = / - only, a letter or digit first"
#: What pydantic puts into a place beside the file's own keys: which member of a union was tried.
HIDDEN = (*REGISTRY, "Objective", "list[Objective]")


def load_spec(path: Path | str | YamlFile, scale: str | None = None) -> SpecFile:
    """The sweep that the file ``path`` describes (or the one so called: ``quickstart``, from any
    folder), a study of several scales at ``scale``. Raises UserError with file, line, key and the
    nearest valid name.
    """
    file = path if isinstance(path, YamlFile) else YamlFile(find(path, "sweeps"))
    file = at_scale(file, scale)
    data = dict(file.data)
    if "space" not in data and {"model", "budget", "train"} & set(data):
        raise UserError(f"{file.path}: this is a run file; use attnres train")
    if isinstance(data.get("launcher"), dict):
        data["launcher"] = {"name": DEFAULT.name, **data["launcher"]}
    try:
        spec = _ADAPTER.validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise UserError(_line(file, error)) from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{file.path}: {error}") from None
    _check(spec, file)
    return SpecFile(spec, parse_space(spec.space, file, adaptive=spec.adaptive), file)


def at_scale(study: YamlFile, scale: str | None) -> YamlFile:
    """The sweep that ``study`` is at ``scale``: the study's ``scales.<scale>`` over the study over
    ``scales.yaml``, sections joined key by key. A file without ``scales`` is returned as it is.

    Raises UserError for a scale that is missing or unknown, or that the file does not have.
    """
    own = study.data.get("scales")
    if own is None:
        if scale:
            raise UserError(f"{study.path}: has no scales; leave --scale {scale} out")
        return study
    shared = _shared(study.path.parent / SHARED)
    valid = [
        *shared.data,
        *(key for key in _mapping(study, own, "scales") if key not in shared.data),
    ]
    if scale not in valid:
        given = f"no scale '{scale}'" if scale else "a study at several scales"
        raise UserError(f"{study.where('scales')}: scales: {given}; give --scale {'|'.join(valid)}")
    layers = (
        (study, ("scales", scale), _mapping(study, own.get(scale), f"scales.{scale}")),
        (study, (), {k: v for k, v in study.data.items() if k not in ("scales", "name")}),
        (shared, (scale,), _mapping(shared, shared.data.get(scale), scale)),
    )
    sweep = copy.copy(study)
    sweep.data, sweep.lines = {"name": f"{study.data.get('name')}-{scale}"}, {}
    for file, prefix, values in layers:
        for key, value in values.items():
            held = sweep.data.setdefault(key, copy.copy(value))
            if held is not value and isinstance(held, dict) and isinstance(value, dict):
                held |= {k: v for k, v in value.items() if k not in held}
        for parts, where in file.lines.items():
            if parts[: len(prefix)] == prefix:
                sweep.lines.setdefault(parts[len(prefix) :], where)
    sweep.text = yaml.safe_dump(sweep.data, sort_keys=False, default_flow_style=None, width=100)
    return sweep


def _shared(path: Path) -> YamlFile:
    return YamlFile(path) if path.exists() else YamlFile(path, text="{}")


def _mapping(file: YamlFile, value: Any, key: str) -> dict[str, Any]:
    """``value``, nothing read as empty. Raises UserError for what is no mapping."""
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{file.where(key)}: {key}: a mapping is expected, got {value!r}")
    return value or {}


def _check(spec: SweepSpec, file: YamlFile) -> None:
    """Raises UserError for parts that do not fit together."""
    if spec.adaptive != (spec.trials is not None):
        remedy = (
            "give the number of points to propose"
            if spec.adaptive
            else "a grid has its own number of trials; leave it out"
        )
        raise UserError(f"{file.where('trials')}: trials: {remedy}")
    if spec.storage:
        check_address(f"{file.where('storage')}: storage", spec.storage)
    for metric in (o.metric for o in spec.objectives if spec.function == TRAIN):
        scored = ("depth/", "perf/", *(("eval/",) if spec.eval else ()))
        if metric not in RESULT and not metric.startswith(scored):
            raise UserError(
                f"{file.where('objective')}: objective.metric: no result of a run is called "
                f"'{metric}'{nearest(metric, RESULT)}"
            )
    if spec.eval and spec.function != TRAIN:
        raise UserError(
            f"{file.where('eval')}: eval: it needs a model that was trained; leave it out, or "
            "function"
        )
    refusal = spec.tune and spec.tune.refusal(
        adaptive=spec.adaptive, objectives=len(spec.objectives)
    )
    if refusal:
        raise UserError(f"{file.where(refusal[0])}: {': '.join(refusal)}")
    if wrong := _misplaced(spec):
        raise UserError(f"{file.where(wrong.partition(':')[0])}: {wrong}")


def _misplaced(spec: SweepSpec) -> str:
    """Why trials cannot have these resources, after the key; empty where they can."""
    if wrong := spec.resources.refusal():
        return wrong
    if spec.resources.nodes > 1 and spec.function != TRAIN:
        return "resources.nodes: several are for training only; leave it out, or function"
    return REGISTRY[spec.launcher.name].refusal(spec.launcher, spec.resources)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the sweep YAML, for editors."""
    schema = _ADAPTER.json_schema()
    schema["properties"]["scales"] = {
        "type": "object",
        "description": "What differs at each scale; what is shared is in scales.yaml.",
        "additionalProperties": {"type": "object"},
    }
    schema["required"].remove("base")  # a study has one at each scale
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "attnres-lab sweep",
        **schema,
        "anyOf": [{"required": ["base"]}, {"required": ["scales"]}],
    }


def _line(file: YamlFile, error: ValidationError) -> str:
    """The first problem as one line: unknown keys first, for they explain the rest."""
    problem = min(
        error.errors(include_url=False),
        key=lambda e: (e["type"] != "unexpected_keyword_argument", -len(e["loc"])),
    )
    kind, given, message = (
        problem["type"],
        problem["input"],
        problem["msg"].replace("Input should", "should"),
    )
    keys = [str(part) for part in problem["loc"] if part not in HIDDEN]
    if kind == "unexpected_keyword_argument":
        parts = (*Strict.__subclasses__(), *(launcher.Config for launcher in REGISTRY.values()))
        names = {f.name for part in parts for f in fields(part)}
        names = names - {"smallest"} | {"from"}  # a word that Python keeps to itself
        message = f"unknown key{nearest(keys[-1], names)}"
    elif kind == "missing":
        message = "missing"
    elif kind == "union_tag_invalid":
        tags = problem["ctx"]["expected_tags"].replace("'", "").split(", ")
        tag = problem["ctx"]["tag"]
        message = f"no {keys[-1]} is called '{tag}'{nearest(tag, tags)}"
    elif kind == "string_pattern_mismatch":
        message = f"{given!r} {FORMS.get(keys[-1], FORM)}"
    elif not isinstance(given, dict):
        message += f", got {given!r}"
    dotted = ".".join(keys)
    return f"{file.where(dotted)}: {dotted or file.path.name}: {message}"
