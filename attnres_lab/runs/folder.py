"""The run folder: the truth about one training run, mirrored elsewhere by others (docs/design.md).

Every write is atomic (a temporary file, then a rename) or an append of whole lines, so that a
reader in another process never sees half a value, and a full disk leaves the previous state in
place.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["scheduled", "running", "finished", "diverged", "failed", "stopped", "pruned"]
Failure = Literal["out_of_memory", "killed", "config", "infrastructure", "bug"]
#: States after which a run is a result; every other state leaves the run owed.
DONE: frozenset[State] = frozenset({"finished", "diverged", "pruned"})


@dataclass(frozen=True)
class Status:
    """What a run is doing: ``step`` in optimiser steps, ``updated`` in unix seconds."""

    state: State
    failure: Failure | None = None
    message: str = ""
    step: int = 0
    updated: float = 0.0


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: the old content or the new one, never a mixture. Raises OSError
    (disk full, read-only).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """``value`` as JSON, atomically. Non-finite floats become the strings "nan", "inf" and "-inf":
    JSON has no such numbers.
    """
    write_atomic(path, (json.dumps(_finite(value), indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``, or None where there is no file."""
    try:
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    except FileNotFoundError:
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class RunFolder:
    """Paths, readers and writers of one run's folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.artifacts = self.path / "artifacts"
        self.log = self.path / "log.txt"
        self.stop = self.path / "stop"  # its presence asks the run to write a checkpoint and end

    def status(self) -> Status:
        """The last written status; ``scheduled`` before the first."""
        value = read_json(self.path / "status.json")
        return Status(**value) if value else Status("scheduled")

    def set_status(
        self, state: State, *, failure: Failure | None = None, message: str = "", step: int = 0
    ) -> None:
        """Write the status, atomically."""
        write_json(
            self.path / "status.json", asdict(Status(state, failure, message, step, time.time()))
        )

    def beat(self) -> None:
        """Show that the run is alive."""
        (self.path / "heartbeat").touch()

    def last_beat(self) -> float | None:
        """Unix time of the last sign of life, or None."""
        try:
            return (self.path / "heartbeat").stat().st_mtime
        except FileNotFoundError:
            return None

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Append one row: ``step``, ``time`` (unix seconds) and metrics; a whole line in one
        write.
        """
        with open(self.metrics, "ab") as file:
            file.write((json.dumps(_finite(row)) + "\n").encode())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The metric rows written so far; a line that is still being written is left out."""
        if not self.metrics.exists():
            return
        with open(self.metrics, "rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield json.loads(line)

    def truncate_metrics(self, step: int) -> None:
        """Drop the rows past ``step``: a resumed run writes them again."""
        if not self.metrics.exists():
            return
        kept = [row for row in self.rows() if row["step"] <= step]
        write_atomic(self.metrics, "".join(json.dumps(row) + "\n" for row in kept).encode())
