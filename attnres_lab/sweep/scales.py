"""Studies: one sweep file for several scales. ``scales.yaml`` beside it holds what all studies
share at a scale, the study's own ``scales`` what differs there.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from attnres_lab.errors import UserError
from attnres_lab.yamlfile import YamlFile

SHARED = "scales.yaml"


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
