"""A sweep's folder: what was planned, what each trial did, who runs it now. Standard library only,
so that ``status`` is quick.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from attnres_lab.errors import UserError
from attnres_lab.runs.files import (
    checked,
    read_json,
    say,
    set_aside,
    unchecked,
    write_atomic,
    write_json,
)
from attnres_lab.runs.folder import RunFolder
from attnres_lab.runs.lock import alive, beating, born, sweep_up, tidy
from attnres_lab.runs.paths import runs_folder
from attnres_lab.runs.secrets import redact_settings

#: Seconds without a heartbeat after which a coordinator on another machine is taken for gone.
SILENT = 30.0


@dataclass(frozen=True)
class Entry:
    """A planned trial: ``hash`` of its resolved config, ``point`` of the same config whatever the
    seed; FLOPs and tokens of the whole training. ``tuning``: it only helps to choose a value.
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
    tuning: bool = False


class SweepFolder:
    """Paths, readers and writers of ``runs/sweeps/<name>``."""

    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        self.trials = path / "trials"
        self.plan_file = path / "plan.json"
        self.description = path / "sweep.json"
        self.stop = path / "stop"  # its presence asks the coordinator to end gracefully
        self.journal = path / "study.journal"
        self.report = path / "report"
        self.page = self.report / "report.html"
        self.gains = self.report / "gains.json"
        self.timed = path / "step_seconds.json"  # steps of its trials beside each other
        self.sent = path / "tracking.json"  # what stores were sent; it may be deleted

    @classmethod
    def named(cls, name: str) -> SweepFolder:
        """The sweep of that name in the runs folder."""
        return cls(runs_folder() / "sweeps" / name)

    @classmethod
    def all(cls) -> list[SweepFolder]:
        """Every sweep in the runs folder, the last changed first."""
        found = runs_folder().glob("sweeps/*/plan.json")
        recent = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
        return [cls(path.parent) for path in recent]

    def trial(self, hash: str) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder(self.trials / hash)

    def choose(self, planned: Iterable[str], names: Iterable[str]) -> set[str]:
        """Which of the ``planned`` hashes to run again: those that begin like one of ``names``,
        from scratch, for their results are moved to ``discarded/``; without names what failed.
        Raises UserError for a name that is no trial.
        """
        planned, chosen = list(planned), set[str]()
        for name in names:
            found = [hash for hash in planned if hash.startswith(name)]
            if len(found) != 1:
                raise UserError(
                    f"{name}: {len(found)} planned trials begin so; see attnres sweep status"
                )
            chosen |= set(found)
        for path in (self.trial(hash).path for hash in chosen):
            if path.exists():
                (self.path / "discarded").mkdir(exist_ok=True)
                path.rename(self.path / "discarded" / f"{path.name}-{time.time_ns()}")
        return chosen or {h for h in planned if self.trial(h).status().state == "failed"}

    def facts(self) -> dict[str, Any]:
        """What ``describe`` wrote: ``name``, ``id``, ``base``, ``yaml``, ``file``; empty before it
        did.
        """
        return read_json(self.description) or {}

    def describe(self, name: str, base: str, yaml: str, file: str = "") -> None:
        """Write ``sweep.json``, ``file`` being where the YAML lies; the id stays what it was."""
        old = self.facts()
        value = {"name": name, "id": self._id(old), "base": base, "yaml": yaml}
        value |= {"file": file} if file else {}
        if value != old or not self._guarded(yaml):
            self._write_facts(value)

    def identify(self) -> str:
        """The id of the sweep, made the first time: two sweeps of one name stay apart in a shared
        store, and one that lost its description is not there twice.
        """
        value = self.facts()
        if "id" not in value:
            value["id"] = self._id(value)
            self._write_facts(value)
        return str(value["id"])

    def _id(self, facts: Mapping[str, Any]) -> str:
        """As described, else as the mirror remembers it, else a new one."""
        remembered = read_json(self.sent) or {}
        return str(facts.get("id") or remembered.get("id") or uuid.uuid4().hex)

    def _write_facts(self, value: dict[str, Any]) -> None:
        """The sweep's YAML is in there, and in it perhaps the password of a database."""
        yaml = str(value.get("yaml", ""))
        write_json(self.description, value, private=redact_settings(yaml) != yaml)

    def _guarded(self, yaml: str) -> bool:
        mode = self.description.stat().st_mode
        return redact_settings(yaml) == yaml or not mode & 0o077

    def write_plan(self, entries: Iterable[Entry]) -> None:
        """Replace ``plan.json``; every line has its checksum."""
        text = ",\n".join(json.dumps(checked(asdict(entry))) for entry in entries)
        data = f"[\n{text}\n]\n".encode()
        if not self.plan_file.exists() or self.plan_file.read_bytes() != data:
            write_atomic(self.plan_file, data)

    def plan(self) -> list[Entry]:
        """The planned trials; empty before the first run. Of a damaged plan, which is set aside,
        those whose lines are whole.
        """
        path = self.plan_file
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            rows = json.loads(data)
        except (ValueError, RecursionError):
            rows = None
        if isinstance(rows, list):
            found = [_entry(row) for row in rows]
        else:
            found = [_entry(_line(line)) for line in data.splitlines() if len(line) > 1] or [None]
        entries = list({entry.hash: entry for entry in found if entry}.values())
        if None in found:
            set_aside(path, data)
            say(f"{path}: {len(entries)} trials of the damaged plan could be read")
            if entries and not path.exists():
                self.write_plan(entries)
        return entries

    def stale(self) -> list[RunFolder]:
        """Trials that ran and are no part of the plan any more: kept, and counted nowhere."""
        planned = {entry.hash for entry in self.plan()}
        paths = sorted(self.trials.glob("*/status.json")) if planned else []
        return [RunFolder(path.parent) for path in paths if path.parent.name not in planned]

    def holder(self) -> dict[str, Any] | None:
        """Who coordinates the sweep now (``pid``, ``host``, ``started``), or None. Asks without
        the coordinator's lock, so that a look never keeps a sweep from starting.
        """
        holder = read_json(self.path / "coordinator.json")
        if not holder:
            return None
        if holder.get("host") == socket.gethostname() and isinstance(holder.get("pid"), int):
            return holder if alive(holder["pid"], holder.get("born")) else None
        try:
            beat = (self.path / "coordinator.heartbeat").stat().st_mtime
        except OSError:
            return None
        return holder if time.time() - beat < SILENT else None

    @contextmanager
    def coordinate(self) -> Iterator[None]:
        """Hold the sweep. The kernel frees the lock of a dead holder. Raises UserError that says
        who holds it, or that nothing may be written here.
        """
        about = self.path / "coordinator.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / "coordinator.lock", timeout=0).acquire()
        except Timeout:
            h = read_json(about) or {}
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(h.get("started", 0)))
            raise UserError(
                f"{self.path}: held by process {h.get('pid')} on {h.get('host')} since {since}; "
                "wait, or end it with: attnres sweep stop, or look with: attnres sweep status"
            ) from None
        except PermissionError:
            raise UserError(f"{self.path}: you may not write here; run it as its owner") from None
        pid, host = os.getpid(), socket.gethostname()
        with lock, beating((self.path / "coordinator.heartbeat").touch):
            self._sweep_up()
            self.stop.unlink(missing_ok=True)  # before anybody can ask this coordinator
            write_json(about, {"pid": pid, "born": born(pid), "host": host, "started": time.time()})
            try:
                yield
            finally:
                with suppress(OSError):
                    about.unlink(missing_ok=True)

    def _sweep_up(self) -> None:
        """Remove what killed processes left half written; not of a trial that still runs, on
        another machine perhaps, where a process id says nothing.
        """
        sweep_up(self.path.glob(".*.tmp"))
        left = self.trials.rglob(".*.tmp")
        for hash in {path.relative_to(self.trials).parts[0] for path in left}:
            with suppress(Timeout), FileLock(self.trial(hash).lock, timeout=0):
                tidy(self.trial(hash))


def _line(line: bytes) -> Any:
    try:
        return json.loads(line.rstrip(b","))
    except (ValueError, RecursionError):
        return None


def _entry(row: Any) -> Entry | None:
    """An entry, unless ``row`` is none, is damaged or its hash leads out of the folder of the
    trials.
    """
    try:
        entry = Entry(**(unchecked(row) or {}))
    except TypeError:
        return None
    safe = isinstance(entry.hash, str) and re.fullmatch(r"\w[\w.-]*", entry.hash)
    return entry if safe and isinstance(entry.params, dict) else None
