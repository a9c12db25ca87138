"""The run folder: the truth about one training run, mirrored elsewhere by others (docs/design.md).

Every write is atomic (a temporary file, then a rename) or an append of whole lines, so that a
reader in another process never sees half a value, and a full disk leaves the previous state in
place.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from attnres_lab.runs import rows
from attnres_lab.runs.files import (
    finite,
    read_json,
    same_folder,
    say,
    set_aside,
    write_atomic,
    write_json,
)
from attnres_lab.runs.secrets import redact_settings

__all__ = [
    "DONE",
    "Failure",
    "RunFolder",
    "State",
    "Status",
    "read_json",
    "write_atomic",
    "write_json",
]

State = Literal["scheduled", "running", "finished", "diverged", "failed", "stopped", "pruned"]
Failure = Literal["out_of_memory", "killed", "config", "infrastructure", "bug"]
#: States after which a run is a result; in every other state the run is pending.
DONE: frozenset[State] = frozenset({"finished", "diverged", "pruned"})


@dataclass(frozen=True)
class Status:
    """What a run is doing: ``step`` in optimiser steps, ``updated`` in unix seconds, ``rows`` the
    SHA-256 of ``metrics.jsonl`` as it was when the run came to a result.
    """

    IMPORTED: ClassVar[str] = "imported from "
    CONVERTED: ClassVar[str] = "converted"  # from another's weights: it was never trained here

    state: State
    failure: Failure | None = None
    message: str = ""
    step: int = 0
    updated: float = 0.0
    rows: str = ""

    @property
    def imported(self) -> str:
        """The table that the run was taken from instead of being run here; empty: none."""
        found = self.message.startswith(self.IMPORTED)
        return self.message.removeprefix(self.IMPORTED) if found else ""


class RunFolder:
    """Paths, readers and writers of one run's folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.status_file = self.path / "status.json"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.artifacts = self.path / "artifacts"
        self.depth = self.artifacts / "depth"  # a record for each probed step
        self.scores = self.artifacts / "eval"  # a file for each task
        self.log = self.path / "log.txt"
        self.lock = self.path / "lock"
        self.stop = self.path / "stop"  # its presence asks the run to write a checkpoint and end
        self.wanted = self.path / "eval.json"  # the evaluation that is a part of a sweep's trial
        self.sent = self.path / "tracking.json"  # what stores were sent; it may be deleted
        self._place: os.stat_result | None = None

    def new_artifact(self, *names: str) -> Path:
        """The path of an artifact that is about to be written. Its folders are made inside the
        run's own, which is not: it may have been moved away. Raises OSError.
        """
        path = self.artifacts.joinpath(*names)
        self.artifacts.mkdir(exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        return path

    def hold(self) -> None:
        """Write into the folder that is here now, and into no other that takes its place. Raises
        OSError.
        """
        self._place = self.path.stat()

    def still_there(self) -> None:
        """Raises OSError where the folder that is held was moved, deleted or unmounted."""
        if self._place:
            same_folder(self.path, self._place)

    def write_config(self, text: str) -> None:
        """The resolved config as YAML; for its owner's eyes where a secret is in it, as a logger's
        may be. Raises OSError.
        """
        write_atomic(self.config, text.encode(), private=redact_settings(text) != text)

    def status(self) -> Status:
        """The last written status; ``scheduled`` before the first, and where a damaged one was set
        aside.
        """
        if not (value := read_json(self.status_file)):
            return Status("scheduled")
        if _is_status(value):
            return Status(**value)
        set_aside(self.status_file, self.status_file.read_bytes())
        return Status("scheduled")

    @property
    def damaged(self) -> bool:
        """Whether nobody knows how far the run is: its status was set aside as damaged."""
        aside = self.path.glob(f"{self.status_file.name}.damaged-*")
        return not self.status_file.exists() and any(aside)

    def set_status(
        self, state: State, *, failure: Failure | None = None, message: str = "", step: int = 0
    ) -> None:
        """Write the status, atomically, and after the rows that it speaks of."""
        self.sync_metrics()
        rows = self._rows_checksum() if state in DONE else ""
        status = Status(state, failure, message, step, time.time(), rows)
        write_json(self.status_file, asdict(status))

    def begun(self) -> float | None:
        """Unix time at which the run itself began; of one that ended before it could say so, at
        which it was given its config. None: it has not begun.
        """
        started = (read_json(self.environment) or {}).get("started")
        if started is None and self.status().state != "scheduled":
            files = (self.environment, self.config, self.status_file)
            started = next(file.stat().st_mtime for file in files if file.exists())
        return started

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
        self.still_there()
        with open(self.metrics, "ab") as file:
            file.write((json.dumps(finite(row)) + "\n").encode())

    def sync_metrics(self) -> None:
        """Bring the rows to the disk: before a checkpoint or a status that counts on them."""
        self.still_there()
        try:
            with open(self.metrics, "rb") as file:
                os.fsync(file.fileno())
        except FileNotFoundError:
            return

    def rows(self) -> Iterator[dict[str, Any]]:
        """The metric rows written so far; a line that is still being written is left out. Says so
        where they are not those that the run ended with.
        """
        if (ended_with := self.status().rows) and ended_with != self._rows_checksum():
            say(f"{self.metrics}: damaged since the run ended; delete the folder to run it again")
        return rows.rows(self.metrics)

    def _rows_checksum(self) -> str:
        try:
            return hashlib.sha256(self.metrics.read_bytes()).hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def last_row(self) -> dict[str, Any]:
        """The newest metric row; empty where there is none."""
        return rows.last_row(self.metrics)

    def truncate_metrics(self, step: int) -> None:
        """Drop the rows past ``step``: a resumed run writes them again."""
        if not self.metrics.exists():
            return
        kept = [row for row in self.rows() if row["step"] <= step]
        write_atomic(self.metrics, "".join(json.dumps(row) + "\n" for row in kept).encode())


def _is_status(value: Mapping[str, Any]) -> bool:
    kinds = {"message": str, "step": int, "updated": int | float, "rows": str}
    return (
        value.get("state") in get_args(State)
        and value.get("failure") in (None, *get_args(Failure))
        and set(value) <= {"state", "failure", *kinds}
        and all(isinstance(value[key], kind) for key, kind in kinds.items() if key in value)
    )
