"""What a reader needs to know to trust a run or to repeat it."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from attnres_lab.config import RunConfig, content_hash
from attnres_lab.data import Corpus
from attnres_lab.flops import num_params


def environment(config: RunConfig, corpus: Corpus, device: torch.device) -> dict[str, Any]:
    """What a reader needs to trust or repeat the run."""
    params = num_params(config.model)
    git = ["git", "-C", str(Path(__file__).parent)]
    revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    dirty = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True)
    return {
        "variant": config.variant,
        "size": config.model.size,
        "seed": config.seed,
        "run_name": config.run_name,
        "config_hash": content_hash(config),
        "params": params.non_embedding,
        "params_total": params.total,
        "revision": revision.stdout.strip() or None,
        "dirty": bool(dirty.stdout.strip()),
        "versions": {name: version(name) for name in ("attnres-lab", "torch", "pytorch-lightning", "optuna", "mlflow", "numpy")},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "devices": config.train.world,
        "threads": config.train.threads,
        "data_fingerprint": corpus.fingerprint,
    }


def cpu_name() -> str:
    """The processor's model, where the system tells, else its architecture."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor() or platform.machine()
