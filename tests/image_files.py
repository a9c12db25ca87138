"""Small image sets for tests: bright squares whose corner is the class."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from attnres_lab.config import RunConfig, load

CORNERS = [(0, 0), (0, 4), (4, 0), (4, 4)]


def squares(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images [N, 8, 8] and labels [N] of four classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=count)
    images = rng.integers(60, size=(count, 8, 8))
    for image, label in zip(images, labels, strict=True):
        row, column = CORNERS[label]
        image[row : row + 4, column : column + 4] += 120
    return images.astype(np.uint8), labels.astype(np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def idx_folder(folder: Path, train: int = 64, val: int = 32) -> Path:
    """The four files of an IDX set; labels packed, images not."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", train, 0), ("t10k", val, 1)):
        images, labels = squares(count, seed)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        packed = gzip.compress(idx_bytes(labels))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(packed)
    return folder


def tiny_images(folder: Path, **overrides: Any) -> RunConfig:
    """A loaded config of a very small ViT on ``idx_folder``; overrides are dotted keys."""
    config = {
        "name": "squares",
        "model": {
            "dim": 16,
            "num_layers": 2,
            "num_heads": 2,
            "mixers": {"attention": {"causal": False, "rope": {"fraction": 0}}},
        },
        "task": {
            "name": "images",
            "image": {"size": 8, "classes": 4, "patch": 4},
            "source": {"name": "idx", "path": str(idx_folder(folder / "squares"))},
        },
        "optim": {"lr": 1e-2},
        "budget": "12 steps",
        "train": {"batch_size": 16, "log_every": 4, "checkpoint_every": 5},
    }
    path = folder / "squares.yaml"
    path.write_text(yaml.safe_dump(config))
    return load(path, overrides)
