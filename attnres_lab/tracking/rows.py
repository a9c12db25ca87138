"""The rows that were added to a ``metrics.jsonl`` since the last look."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class RowReader:
    """Reads on where it stopped; from the start again when the file was replaced, as a resume does
    to cut it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # metric to (rows without a finite value, first such step)
        self.nonfinite: dict[str, tuple[int, int]] = {}
        self._file: tuple[int, int] | None = None
        self._offset = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Rows in order; a line that is still being written is left for the next call."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            stat = os.fstat(file.fileno())
            if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self._offset:
                self._file, self._offset, self.nonfinite = (stat.st_dev, stat.st_ino), 0, {}
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                row = json.loads(line)
                for key in (
                    key
                    for key, value in row.items()
                    if value in ("nan", "inf", "-inf")
                    or (isinstance(value, float) and not finite(value))
                ):
                    count, first = self.nonfinite.get(key, (0, row["step"]))
                    self.nonfinite[key] = (count + 1, first)
                yield row
                self._offset += len(line)


def finite(value: Any) -> bool:
    """Whether MLflow can store it as a number."""
    return isinstance(value, int | float) and math.isfinite(value)
