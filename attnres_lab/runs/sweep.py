"""A sweep's folder: what was planned, what each trial did, who runs it now. Standard library only,
so that ``status`` is quick.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder, read_json, write_atomic, write_json
from attnres_lab.runs.paths import runs_folder


@dataclass(frozen=True)
class Entry:
    """A planned trial: ``hash`` of its resolved config, ``point`` of the same config whatever the
    seed; FLOPs and tokens of the whole training.
    """

    hash: str
    point: str
    params: dict[str, Any]
    variant: str
    size: str
    seed: int
    run_name: str
    num_params: int
    flops: float | None  # None: a budget of seconds
    tokens: int | None


class SweepFolder:
    """Paths, readers and writers of ``runs/sweeps/<name>``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials = path / "trials"
        self.stop = path / "stop"  # its presence asks the coordinator to end gracefully
        self.journal = path / "study.journal"

    @classmethod
    def named(cls, name: str) -> SweepFolder:
        """The sweep of that name in the runs folder."""
        return cls(runs_folder() / "sweeps" / name)

    def trial(self, hash: str) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder(self.trials / hash)

    def describe(self, name: str, base: str, yaml: str) -> None:
        """Write ``sweep.json``; the id stays what it was."""
        old = read_json(self.path / "sweep.json") or {}
        value = {"name": name, "id": old.get("id", uuid.uuid4().hex), "base": base, "yaml": yaml}
        if value != old:
            write_json(self.path / "sweep.json", value)

    def write_plan(self, entries: Iterable[Entry]) -> None:
        """Replace ``plan.json``."""
        text = ",\n".join(json.dumps(asdict(entry)) for entry in entries)
        data = f"[\n{text}\n]\n".encode()
        path = self.path / "plan.json"
        if not path.exists() or path.read_bytes() != data:
            write_atomic(path, data)

    def plan(self) -> list[Entry]:
        """The planned trials; empty before the first run."""
        try:
            return [Entry(**row) for row in json.loads((self.path / "plan.json").read_text())]
        except FileNotFoundError:
            return []

    def holder(self) -> dict[str, Any] | None:
        """Who coordinates the sweep now, or None."""
        holder = read_json(self.path / "coordinator.json")
        try:
            with FileLock(self.path / "coordinator.lock", timeout=0) if holder else nullcontext():
                return None
        except Timeout:
            return holder
        except OSError:  # where nothing can be written, nothing runs
            return None

    @contextmanager
    def coordinate(self) -> Iterator[None]:
        """Hold the sweep. The kernel frees the lock of a dead holder. Raises UserError that says
        who holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / "coordinator.lock", timeout=0):
                write_json(
                    self.path / "coordinator.json",
                    {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()},
                )
                self.stop.unlink(missing_ok=True)
                yield
        except Timeout:
            h = read_json(self.path / "coordinator.json") or {}
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(h.get("started", 0)))
            raise UserError(
                f"{self.path}: held by process {h.get('pid')} on {h.get('host')} since {since}; "
                "wait, or end it with: attnres sweep stop, or look with: attnres sweep status"
            ) from None


def last_row(folder: RunFolder) -> dict[str, Any]:
    """The newest whole metrics row of a run, without reading the file from its start."""
    try:
        with open(folder.metrics, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1]) if lines else {}
    except (FileNotFoundError, ValueError):
        return {}
