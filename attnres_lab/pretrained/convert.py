"""A pretrained model as the folder of a run, under any residual connection that starts as the
baseline.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from attnres_lab.config import RunConfig, content_hash, load, to_yaml
from attnres_lab.errors import UserError
from attnres_lab.model import Transformer
from attnres_lab.pretrained import names
from attnres_lab.pretrained.families import to_model
from attnres_lab.pretrained.source import find
from attnres_lab.residual import REGISTRY
from attnres_lab.runs.folder import RunFolder, Status
from attnres_lab.runs.paths import cache_folder
from attnres_lab.training.checkpoint import AtomicCheckpoint
from attnres_lab.yamlfile import YamlFile

FILES = "hf"  # in a converted folder: tokenizer, chat template, config.json


def convert(
    source: str,
    folder: Path | str,
    overrides: Mapping[str, Any] | None = None,
    cache: Path | None = None,
) -> RunConfig:
    """Write ``config.yaml``, ``checkpoints/last.ckpt`` (fp32), ``status.json`` and ``hf/``
    (tokenizer, chat template) into ``folder``. ``source`` is what ``source.find`` takes,
    ``overrides`` are dotted keys, those of ``model.residual`` above all.

    Reads start as sums (``scale: sum``) unless the overrides say otherwise: then the function is
    the source's at any eps of the norms (docs/decisions/009).

    Raises UserError for what cannot be read or is not supported, for a variant that does not start
    as the baseline, and for a folder that holds something.
    """
    files = RunFolder(folder)
    if files.path.exists() and any(files.path.iterdir()):
        raise UserError(f"{files.path}: is not empty; give another folder or delete it")
    found = find(source, cache or cache_folder())
    settings = to_model(found.config, found.where)
    config = _config(files, settings, _as_sums(dict(overrides or {})), found.config)
    model = Transformer(config.model)
    if not model.residual.starts_as_baseline:
        raise UserError(
            f"model.residual: {config.variant} does not start as the baseline, so the function "
            "would not be kept; take another, for example full or block"
        )
    with tempfile.TemporaryDirectory() as scratch:  # so that bad input leaves nothing behind
        found.keep(Path(scratch))
        model.load_state_dict(model.state_dict() | names.to_ours(model, found.weights()))
        shutil.copytree(scratch, files.path / FILES)
    files.write_config(to_yaml(config))
    save(files, config, model)
    files.set_status("finished", message=Status.CONVERTED)
    return config


def save(files: RunFolder, config: RunConfig, model: torch.nn.Module) -> None:
    """A checkpoint of the weights alone."""
    content = {
        "config": to_yaml(config),
        "config_hash": content_hash(config),
        "model": model.state_dict(),
    }
    AtomicCheckpoint(files.checkpoint).save_checkpoint(content, files.checkpoint)


def _as_sums(overrides: dict[str, Any]) -> dict[str, Any]:
    """With ``scale: sum`` where the variant has it and nothing else is said."""
    key = "model.residual"
    given = overrides.pop(key, None)
    if given is not None:
        options = given if isinstance(given, dict) else {"name": given}
        overrides = {f"{key}.{name}": value for name, value in options.items()} | overrides
    name = overrides.get(f"{key}.name", "baseline")
    if name in REGISTRY:
        fields = {f.name for f in dataclasses.fields(REGISTRY[name].Config)}
        if "scale" in fields:
            overrides.setdefault(f"{key}.scale", "sum")
    return overrides


def _config(
    files: RunFolder, settings: dict[str, Any], overrides: Mapping[str, Any], theirs: Any
) -> RunConfig:
    """The run's config, as if it came from a file."""
    raw = {
        "name": files.path.resolve().name,
        "model": settings,
        "data": {
            "tokenizer": str((files.path / FILES / "tokenizer.json").resolve()),
            "seq_len": min(1024, getattr(theirs, "max_position_embeddings", None) or 1024),
        },
        # a pretrained model forgets at the rate of one that starts from nothing
        "optim": {"lr": 1e-4},
        "budget": "100 steps",
    }
    return load(YamlFile(files.config, yaml.safe_dump(raw)), overrides)
