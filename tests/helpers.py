"""Small configs and corpora for tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from attnres_lab.config import RunConfig, load

WORDS = [
    "the",
    "of",
    "and",
    "attention",
    "residual",
    "depth",
    "block",
    "query",
    "source",
    "layer",
    "norm",
    "loss",
    "token",
    "sum",
]


def corpus_folder(folder: Path, documents: int = 200, seed: int = 0) -> Path:
    """Text files of random words: small, learnable, the same everywhere."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(documents):
        (folder / f"{index:04}.txt").write_text(" ".join(rng.choice(WORDS, 80)))
    return folder


def write_run(path: Path, **overrides: Any) -> Path:
    """A run YAML of a very small model on ``corpus_folder`` beside it."""
    corpus = corpus_folder(path.parent / "corpus")
    config: dict[str, Any] = {
        "name": path.stem,
        "model": {"dim": 16, "num_layers": 2, "num_heads": 2},
        "data": {
            "source": {"name": "files", "paths": [str(corpus / "*.txt")]},
            "seq_len": 32,
            "val_tokens": 512,
            "val_fraction": 0.1,
            "cache_dir": str(path.parent / "cache"),
        },
        "budget": "12 steps",
        "train": {"batch_size": 4, "log_every": 4, "checkpoint_every": 5},
    }
    for dotted, value in overrides.items():
        node = config
        *parents, last = dotted.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    path.write_text(yaml.safe_dump(config))
    return path


def tiny(folder: Path, **overrides: Any) -> RunConfig:
    """A loaded config of ``write_run``; overrides are dotted keys."""
    return load(write_run(folder / "tiny.yaml"), overrides)
