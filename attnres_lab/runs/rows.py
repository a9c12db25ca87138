"""The one reader of ``metrics.jsonl``: whole rows only, whatever a crash left in the file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from attnres_lab.runs.files import say


class RowReader:
    """Gives the rows that were added since the last look, and all of them again when those read
    before are no longer in the file, as after a resume, which cuts it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restarted = False  # whether the last ``new`` began at the start of the file
        self._offset = 0
        self._last = b""  # the line that ends at the offset

    def new(self) -> list[dict[str, Any]]:
        """Rows in order; a line that is still being written is left for the next call."""
        if (file := _open(self.path)) is None:
            self._offset, self._last = 0, b""
            return []
        with file:
            file.seek(self._offset - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._offset, self._last = 0, b""
                file.seek(0)
            self.restarted = self._offset == 0
            found = []
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset, self._last = self._offset + len(line), line
                if (row := _parse(line, self.path)) is not None:
                    found.append(row)
        return found


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows written so far, one at a time; a line that is still being written is left out."""
    if (file := _open(path)) is None:
        return
    with file:
        for line in file:
            if line.endswith(b"\n") and (row := _parse(line, path)) is not None:
                yield row


def last_row(path: Path) -> dict[str, Any]:
    """The newest whole row, without reading the file from its start; empty where there is none."""
    if (file := _open(path)) is None:
        return {}
    with file:
        size, window = file.seek(0, os.SEEK_END), 8192
        while True:
            start = max(0, size - window)
            file.seek(start)
            lines = file.read(size - start).split(b"\n")[:-1]
            for line in reversed(lines if start == 0 else lines[1:]):
                if (row := _parse(line, path)) is not None:
                    return row
            if start == 0:
                return {}
            window *= 8


def _open(path: Path) -> BinaryIO | None:
    try:
        return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parse(line: bytes, path: Path) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict) and isinstance(row.get("step"), int):
        return row
    say(f"{path}: damaged rows are left out")
    return None
