"""What tells one set of weights from another, for runs that start from them."""

from __future__ import annotations

import hashlib
import zipfile
from functools import lru_cache
from pathlib import Path

from attnres_lab.runs import RunFolder


def checkpoint_in(path: str) -> Path:
    """The checkpoint that ``path`` names: itself, or the last of a run's folder."""
    found = Path(path).expanduser()
    return RunFolder(found).checkpoint if found.is_dir() else found


def weights_digest(path: Path) -> str | None:
    """12 hex digits over the sizes and checksums of the tensors in a checkpoint, as its archive
    lists them; None where there is no such file or it is no archive.
    """
    try:
        facts = path.stat()
    except OSError:
        return None
    return _digest(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=64)
def _digest(path: Path, changed: int, size: int) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            # the tensors; beside them lies the config, which knows the name of its folder
            entries = [(i.filename.partition("/")[2], i.CRC, i.file_size) for i in archive.filelist]
    except (OSError, zipfile.BadZipFile):
        return None
    tensors = sorted(entry for entry in entries if entry[0].startswith("data/"))
    return hashlib.sha256(repr(tensors).encode()).hexdigest()[:12]
