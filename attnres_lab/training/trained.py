"""A trained model from its checkpoint, to be used and not trained on."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import torch

from attnres_lab.config import RunConfig, load
from attnres_lab.errors import UserError
from attnres_lab.model import Transformer


def load_model(path: Path) -> tuple[Transformer, RunConfig]:
    """The model and config of a checkpoint, or of a run's folder: tensors and plain values only, no
    code is run. Raises UserError.
    """
    path = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    try:
        content: dict[str, Any] = torch.load(
            io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True
        )
        text, weights = content["config"], content.get("model") or content["state_dict"]
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; give a checkpoint or the folder of a run"
        ) from None
    # torch.load raises half a dozen types on files that are no checkpoint
    except Exception as error:
        raise UserError(
            f"{path}: not a checkpoint of a training run ({type(error).__name__})"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(text)
        config = load(file)
    if config.task.name != "language":
        raise UserError(f"{path}: a model of task.name: {config.task.name} writes no text")
    model = Transformer(config.model)
    try:
        model.load_state_dict({key.removeprefix("model."): value for key, value in weights.items()})
    except RuntimeError as error:
        raise UserError(
            f"{path}: the weights do not fit the config in the checkpoint "
            f"({str(error).splitlines()[0]})"
        ) from None
    return model.eval(), config
