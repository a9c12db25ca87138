"""Who trained, and on which data, as MLflow shows it beside a run."""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping
from typing import Any

DIGEST = 36  # characters that MLflow keeps


def user() -> str:
    """The name that the system knows the user by; ``unknown`` where it knows none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def dataset_input(environment: Mapping[str, Any]) -> Any:
    """The training data of a run by its ``environment.json``: source, fingerprint and tokens."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    config = environment.get("config") or {}
    source = {
        key: value
        for key, value in config.items()
        if key.startswith(("data.source", "task.source", "data.tokenizer", "task.name"))
    }
    name = config.get("data.source.name") or config.get("task.source.name") or "data"
    profile = {"train_tokens": environment.get("train_tokens")}
    data = Dataset(
        str(name),
        str(environment["data_fingerprint"])[:DIGEST],
        "attnres",
        json.dumps(source, sort_keys=True),
        profile=json.dumps(profile),
    )
    return DatasetInput(data, [InputTag("mlflow.data.context", "training")])
