"""Small configs and corpora for tests of training, and what they do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml

from attnres_lab.config import RunConfig, load
from attnres_lab.model import Transformer
from attnres_lab.runs.folder import RunFolder
from attnres_lab.runs.looks import looks
from attnres_lab.training.run import RunResult, run

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


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a run's last checkpoint."""
    return torch.load(RunFolder(folder).checkpoint, weights_only=True)["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def curve(folder: Path, key: str) -> list[tuple[int, float]]:
    """Step and value of the rows that hold ``key``."""
    return [(row["step"], row[key]) for row in RunFolder(folder).rows() if key in row]


def run_in_two_parts(config: RunConfig, folder: Path) -> tuple[RunResult, RunResult]:
    """A run that is asked to stop before it begins, which it does at its first checkpoint, and that
    then goes on to its end.
    """
    files = RunFolder(folder)
    files.path.mkdir()
    files.stop.write_text("stop")
    first = run(config, folder)
    assert first.status.state == "stopped"
    files.stop.unlink()
    last = run(config, folder)
    assert last.status.state == "finished"
    return first, last


class Crash(pl.Callback):
    """The run's process fails after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("crash")


def randomise_reads(model: Transformer) -> None:
    """Random queries, so that depth weights matter."""
    with torch.no_grad():
        for parameter in model.residual.parameters():
            generator = torch.Generator().manual_seed(3)
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def names_of_one_colour() -> tuple[str, str]:
    """Two variants that have one colour each by itself, found by trying."""
    seen: dict[str, str] = {}
    for name in (f"mine{i}" for i in range(1000)):
        twin = seen.setdefault(looks([name])[name].color, name)
        if twin != name:
            return name, twin
    raise AssertionError("no two of a thousand names have one colour")
