"""What a reader needs to know to trust a run or to repeat it."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from attnres_lab.config import RunConfig, content_hash, flatten
from attnres_lab.model import ImageShape
from attnres_lab.runs.folder import RunFolder, read_json, write_atomic, write_json
from attnres_lab.runs.secrets import redact_code, redact_value

DIFF_BYTES = 1_000_000  # a longer diff is cut


def write_environment(
    files: RunFolder, config: RunConfig, dataset: Any, device: torch.device
) -> None:
    """Write ``environment.json``, and as artifacts the data's manifest (``data.json``) and what of
    the code is not committed (``code.diff``). ``dataset`` is a data module's. The run's id in
    MLflow stays what it was.
    """
    diff = uncommitted(Path(__file__).parent)
    # a run that goes on began when it first did, and is known to MLflow by the same id
    old = read_json(files.environment) or {}
    facts = {"dirty": bool(diff), "started": old.get("started", time.time())}
    facts |= {"id": old.get("id") or uuid4().hex}
    write_json(files.environment, environment(config, dataset, device) | facts)
    write_json(files.new_artifact("data.json"), dataset.manifest)
    if diff:
        write_atomic(files.new_artifact("code.diff"), diff[:DIFF_BYTES])


def environment(config: RunConfig, dataset: Any, device: torch.device) -> dict[str, Any]:
    """Labels, revision, versions, device and data of a run."""
    params = config.params
    return {
        "variant": config.variant,
        "size": config.model.size,
        "seed": config.seed,
        "run_name": config.run_name,
        "config_hash": content_hash(config),
        "config": redact_value(flatten(config)),
        "params": params.non_embedding,
        "params_total": params.total,
        "params_active": params.active,
        "revision": _git(Path(__file__).parent, "rev-parse", "HEAD").decode().strip() or None,
        "versions": {
            name: version(name)
            for name in ("attnres-lab", "torch", "pytorch-lightning", "optuna", "mlflow", "numpy")
        },
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "devices": config.train.world,
        "threads": config.train.threads,
        "data_fingerprint": dataset.fingerprint,
        "train_tokens": getattr(dataset, "train_tokens", None),  # of a corpus
    }


def cpu_name() -> str:
    """The processor's model, where the system tells, else its architecture."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
    )
    return model or platform.processor() or platform.machine()


def uncommitted(code: Path) -> bytes:
    """What is not committed of the source in the repository that holds ``code``, and the source
    files below ``code`` that are new, as one patch without secrets; empty where there is no Git.
    Other files may hold anything, and are left out.
    """
    top = Path(_git(code, "rev-parse", "--show-toplevel").decode().strip() or code)
    new = (
        _git(top, "ls-files", "--others", "--exclude-standard", "-z", f"{code}/*.py")
        .decode()
        .split("\0")
    )
    parts = [
        _git(top, "diff", "HEAD", "--", "*.py"),
        *(_git(top, "diff", "--no-index", "/dev/null", name) for name in new if name),
    ]
    return redact_code(b"".join(parts).decode(errors="replace")).encode()


def _git(folder: Path, *words: str) -> bytes:
    """What Git prints; nothing where there is no Git or no repository."""
    return (
        subprocess.run(["git", "-C", str(folder), *words], capture_output=True).stdout
        if shutil.which("git")
        else b""
    )


#: What else decides the speed; in its key only where it is not the default, so that older speeds
#: stay known.
SPEED = {
    "model": "vocab_size num_heads num_kv_heads mlp_dim qk_norm tie_embeddings mixers mlp",
    "optim": "name query_optimizer query_master freeze_trunk lora",
    "train": "accumulate strategy pipeline",
}
DEFAULT, DEFAULT_IMAGE = RunConfig(), ImageShape()


def speed_key(c: RunConfig) -> str:
    """What decides a run's speed; the variant's label and the size stand for their options."""
    t = c.train
    model = (
        c.variant,
        c.model.size,
        c.task.tokens(c.data.seq_len),
        t.micro,
        t.precision,
        t.compile,
    )
    parts = (*model, t.world, t.threads, c.model.activation_checkpointing)
    nodes = [f"{t.nodes}x"] if t.nodes > 1 else []
    other = {
        f"{section}.{key}": value
        for section, keys in SPEED.items()
        for key in keys.split()
        if (value := getattr(getattr(c, section), key)) != getattr(getattr(DEFAULT, section), key)
    }
    if (image := getattr(c.task, "image", DEFAULT_IMAGE)) != DEFAULT_IMAGE:
        other["task.image"] = image
    if other:
        nodes.append(hashlib.sha256(repr(other).encode()).hexdigest()[:8])
    return " ".join(map(str, (*parts, *nodes)))
