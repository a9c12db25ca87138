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

from attnres_lab.errors import UserError


class AtomicCheckpoint(TorchCheckpointIO):
    """Writes beside the old checkpoint and renames, so that a kill or a full disk leaves the old
    one whole; loads tensors only, no code.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
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
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums it writes
            if damaged := archive.testzip():
                raise ValueError(f"checksum of {damaged}")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
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
