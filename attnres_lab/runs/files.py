"""Small files, written whole or not at all, and read with tolerance: a damaged one is set aside."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_said: set[str] = set()  # each damage is named once a process


def write_atomic(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace ``path`` by ``data``: the old content or the new one, never a mixture; ``private``:
    for its owner's eyes. Its folder must be there: a run's may have been moved away, and nothing is
    to start another in its place. Raises OSError (disk full, read-only, no folder).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        mode = 0o600 if private else 0o666  # less what the umask takes
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any], *, private: bool = False) -> None:
    """``value`` as JSON, atomically, with its checksum under ``sha256``. Non-finite floats become
    the strings "nan", "inf" and "-inf": JSON has no such numbers.
    """
    text = json.dumps(checked(finite(value)), indent=1)
    write_atomic(path, (text + "\n").encode(), private=private)


def checked(value: Mapping[str, Any]) -> dict[str, Any]:
    """``value``, plain JSON, with its checksum."""
    text = json.dumps(value, sort_keys=True)
    return {**value, "sha256": hashlib.sha256(text.encode()).hexdigest()[:16]}


def unchecked(value: Any) -> dict[str, Any] | None:
    """``value`` without its checksum; None for what is no mapping, or another one than was written.
    One without a checksum is of another writer, and taken as it is.
    """
    if not isinstance(value, dict) or "sha256" not in value:
        return value if isinstance(value, dict) else None
    bare = {key: item for key, item in value.items() if key != "sha256"}
    return bare if checked(bare)["sha256"] == value["sha256"] else None


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``, or None where there is no file or a damaged one, which is set
    aside.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        value = unchecked(json.loads(data))
    except (ValueError, RecursionError):
        value = None
    if value is None:
        set_aside(path, data)
    return value


def set_aside(path: Path, data: bytes) -> None:
    """Rename a damaged file whose content is ``data`` to ``<name>.damaged-<n>`` and say so in one
    line; where nothing can be renamed it stays.
    """
    n = 1
    while (aside := path.with_name(f"{path.name}.damaged-{n}")).exists():
        n += 1
    try:
        if path.read_bytes() != data:  # replaced by a good one since
            return
        os.replace(path, aside)
        say(f"{path}: damaged; set aside as {aside.name}")
    except OSError:
        say(f"{path}: damaged, and cannot be renamed; it is taken as missing")


def same_folder(path: Path, place: os.stat_result) -> None:
    """Raises OSError where ``path`` is no longer the folder that ``place`` was taken of: it was
    moved, deleted or unmounted, and what is written from here on would start another in its place.
    """
    if not path.exists() or not os.path.samestat(place, path.stat()):
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def say(text: str) -> None:
    """A line on standard error, once a process."""
    if text not in _said:
        _said.add(text)
        print(text, file=sys.stderr, flush=True)


def finite(value: Any) -> Any:
    """``value`` with its non-finite floats as "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def number(value: Any) -> float | None:
    """A number of a result, "nan" and "inf" among them; None for whatever else a function left."""
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        return None
    return float(value) if isinstance(value, int | float | str) else None
