"""Checkpoints: written whole or not at all, read as data."""

from __future__ import annotations

import errno
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from attnres_lab.config import RunConfig, load
from attnres_lab.config.weights import checkpoint_in, weights_digest
from attnres_lab.errors import UserError
from attnres_lab.model import Network, Transformer
from attnres_lab.runs.table import locate
from attnres_lab.training import lora
from attnres_lab.yamlfile import YamlFile


class AtomicCheckpoint(TorchCheckpointIO):
    """Writes beside the old checkpoint and renames, so that a kill or a full disk leaves the old
    one whole; loads tensors only, no code. ``own`` is the run's: its folder is there, or was moved
    away, and is not made anew; those of a callback may lie anywhere.
    """

    def __init__(self, own: Path) -> None:
        self.own = own

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=path != self.own, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        try:
            with open(temporary, "wb") as file:  # of a file of its own torch tells no reason
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            reason = _reason(error)
            raise OSError(
                reason.errno,
                f"the checkpoint could not be written ({reason.strerror})",
                str(path),
            ) from error


def _reason(error: BaseException) -> OSError:
    """The error of the disk behind an error of torch's writer, which may hide it."""
    found: BaseException | None = error
    while found:
        if isinstance(found, OSError) and found.errno:
            return found
        found = found.__cause__ or found.__context__
    return OSError(errno.EIO, str(error).splitlines()[0])


def load_checkpoint(path: Path, config_hash: str | None = None) -> dict[str, Any]:
    """The checkpoint in ``path``, as tensors and plain values. Raises UserError where it is corrupt
    or belongs to another config.
    """
    try:
        checkpoint = _content(path)
        found = checkpoint["config_hash"]
    except FileNotFoundError:
        raise UserError(f"{path}: there is no checkpoint here") from None
    except Exception as error:  # torch.load raises half a dozen types on damaged files
        raise UserError(
            f"{path}: corrupt checkpoint ({type(error).__name__}); delete it to train again from "
            "the start"
        ) from error
    if config_hash and found != config_hash:
        raise UserError(
            f"{path}: this checkpoint belongs to another config ({found}, not {config_hash}); use "
            "another folder or delete it"
        )
    return checkpoint


def _content(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, its checksums compared: torch writes them, and does not read them.
    Raises OSError, and on a damaged file half a dozen types more.
    """
    with open(path, "rb") as file:
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"checksum of {damaged}")
        file.seek(0)
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return content


def load_model(path: Path) -> tuple[Transformer, RunConfig]:
    """The model and config of a checkpoint, or of a run (its folder, hash or name), adapters
    merged: tensors and plain values only, no code is run. Raises UserError.
    """
    if not path.exists() and path.suffix != ".ckpt":
        path = locate(str(path))
    path = checkpoint_in(str(path))
    try:
        content = _content(path)
        text, weights = content["config"], content.get("model") or content["state_dict"]
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; give a checkpoint or the folder of a run"
        ) from None
    # torch.load raises half a dozen types on files that are no checkpoint
    except Exception as error:
        raise UserError(
            f"{path}: not a checkpoint of a training run, or a damaged one ({type(error).__name__})"
        ) from None
    config = load(YamlFile(f"{path}: its config", text))
    if config.task.name != "language":
        raise UserError(f"{path}: a model of task.name: {config.task.name} writes no text")
    model = Transformer(config.model)
    weights = {key.removeprefix("model."): value for key, value in weights.items()}
    try:
        model.load_state_dict(lora.merge(weights, config.optim.lora))
    except RuntimeError as error:
        raise UserError(
            f"{path}: the weights do not fit the config in the checkpoint "
            f"({str(error).splitlines()[0]})"
        ) from None
    return model.eval(), config


def start_from(config: RunConfig, model: Network) -> None:
    """Give a new model the weights of ``init_from``, if there is one: the trunk's, and those of the
    residual connection where it is the same; another starts as it always does, over a baseline.

    Raises UserError for a checkpoint that is gone, has changed or does not fit.
    """
    if config.init_from is None:
        return
    path = checkpoint_in(config.init_from)
    if not path.is_file():
        raise UserError(
            f"init_from: {config.init_from}: there is no checkpoint here; attnres convert or "
            "attnres train makes one"
        )
    if (found := weights_digest(path)) != config.init_digest:
        raise UserError(
            f"init_from: {path}: holds other weights than when this run was set up ({found}, not "
            f"{config.init_digest}); leave out init_digest to start from these"
        )
    other, _ = load_model(path)
    weights, state = other.state_dict(), model.state_dict()
    places = lora.places(state)
    own = {plain: state[name] for plain, name in places.items()}
    names = {key for key in {*weights, *own} if not key.startswith("residual.")} | set(weights)
    for name in sorted(names):
        if name not in own and name.startswith("residual."):
            raise UserError(
                f"init_from: {path}: is a {other.config.residual.label} and has {name}, which "
                f"{config.variant} has not; start from a baseline or from the same variant"
            )
        if name not in own or name not in weights or own[name].shape != weights[name].shape:
            raise UserError(
                f"init_from: {path}: {name} does not fit this model; take the sizes of its config"
            )
    model.load_state_dict(state | {places[name]: value for name, value in weights.items()})
