"""Run configs: a tree of frozen dataclasses, and the one hop from YAML to it."""

from attnres_lab.config.budget import Budget
from attnres_lab.config.loading import (
    content_hash,
    flatten,
    load,
    parse_overrides,
    to_dict,
    to_yaml,
)
from attnres_lab.config.lora import LoraConfig
from attnres_lab.config.optim import OptimConfig
from attnres_lab.config.task import ImagesConfig, LanguageConfig
from attnres_lab.config.tree import RunConfig, TrainConfig

__all__ = [
    "Budget",
    "ImagesConfig",
    "LanguageConfig",
    "LoraConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
    "content_hash",
    "flatten",
    "load",
    "parse_overrides",
    "to_dict",
    "to_yaml",
]
