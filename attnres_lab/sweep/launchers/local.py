"""Processes on this machine, forked from a server that imported torch once; each leases its own
devices or CPU cores.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from attnres_lab.errors import UserError
from attnres_lab.runs import RunFolder
from attnres_lab.runs.failures import UNWRITABLE
from attnres_lab.sweep.launchers.base import Count, Ended, Launcher, LauncherConfig

if TYPE_CHECKING:
    from attnres_lab.sweep.schema import Resources

START_METHOD = "forkserver"
#: What multiprocessing reports where the fork server died before it could tell the exit code.
UNKNOWN = 255


@dataclass(frozen=True)
class LocalConfig(LauncherConfig):
    """Processes on this machine."""

    name: Literal["local"] = "local"
    workers: Count | None = None
    """Trials at a time; by default as many as the devices, or the cores, allow."""


@dataclass(frozen=True)
class Lease:
    """What one trial may use: GPU ids (empty: none), CPU cores (empty: any) and threads."""

    gpus: tuple[str, ...]
    cores: tuple[int, ...]
    threads: int

    def take(self) -> None:
        """Confine this process and its children."""
        os.environ.update(self.environment())
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(self.threads)

    def environment(self) -> dict[str, str]:
        """Variables for the trial."""
        threads = dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self.threads)
        )
        return {**threads, "CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}


def nvidia_smi(*columns: str) -> list[list[str]]:
    """A row for each GPU of this machine, without touching CUDA."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", f"--query-gpu={','.join(columns)}", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line.split(", ") for line in lines if line.count(", ") == len(columns) - 1]


def visible_gpus() -> list[str]:
    """UUIDs of the GPUs this process may use."""
    ids = {row[0]: row[1] for row in nvidia_smi("index", "uuid")}
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(ids))
    return [ids.get(word, word) for word in allowed.split(",") if word and word != "-1"]


#: Trials for each core, or GPU, that may be asked for.
CROWD = 16


def make_leases(config: LocalConfig, resources: Resources, gpus: list[str]) -> list[Lease]:
    """Disjoint leases: no device, unless trials share it, and, where there are enough, no core is
    in two of them. Raises UserError for more workers than could get on.
    """
    cores, need = sorted(os.sched_getaffinity(0)), resources.threads * resources.ranks
    if (config.workers or 0) > (most := max(CROWD, resources.shared) * len(gpus or cores)):
        raise UserError(
            f"launcher.workers: {config.workers} trials at a time on {len(cores)} cores and "
            f"{len(gpus)} GPUs would stand in each other's way; give at most {most}"
        )
    if gpus and resources.devices:
        n = resources.whole
        sets = [tuple(gpus[i : i + n]) for i in range(0, len(gpus) - n + 1, n)]
        groups = (sets * resources.shared)[: config.workers]  # fewer workers spread over devices
    else:
        groups = [()] * (config.workers or max(1, len(cores) // need))
    per = len(cores) // len(groups) if groups else 0
    pinned = per >= need
    return [
        Lease(group, tuple(cores[i * per : (i + 1) * per]) if pinned else (), resources.threads)
        for i, group in enumerate(groups)
    ]


class LocalLauncher(Launcher):
    """A slot for each lease."""

    Config = LocalConfig
    here = True

    def __init__(
        self, config: LocalConfig, resources: Resources, function: str, folder: Path
    ) -> None:
        self.function = function
        self.free = make_leases(config, resources, visible_gpus() if resources.devices else [])
        if not self.free:
            raise UserError(
                f"resources.devices: {resources.devices} in one trial, but this machine has "
                f"{len(visible_gpus())} GPUs; 0 means CPU"
            )
        self.slots = len(self.free)
        self.running: dict[str, tuple[Any, Lease]] = {}
        self.lost: list[Ended] = []  # that the fork server could not start
        self.context: Any = multiprocessing.get_context(START_METHOD)
        module = function.partition(":")[0]
        self.context.set_forkserver_preload(
            [
                "attnres_lab.sweep.launchers.local",
                "attnres_lab.sweep.process",
                module,
                "attnres_lab.sweep.launchers.forkserver",
            ]
        )

    @classmethod
    def expected_slots(cls, config: LauncherConfig, resources: Resources) -> int:
        assert isinstance(config, LocalConfig)
        return len(make_leases(config, resources, visible_gpus() if resources.devices else []))

    def start(self, folder: Path) -> None:
        lease = self.free.pop(0)
        process = self.context.Process(
            target=_trial, args=(folder, self.function, lease), name=folder.name
        )
        try:
            with _no_main():
                process.start()
        except (EOFError, ConnectionError):  # the fork server was killed; the next start makes one
            self.free.append(lease)
            self.lost.append(Ended(folder.name, None))
            return
        self.running[folder.name] = (process, lease)

    def wait(self, seconds: float) -> list[Ended]:
        if not self.lost:
            wait([process.sentinel for process, _ in self.running.values()], seconds)
        ended = [
            Ended(hash, None if process.exitcode == UNKNOWN else process.exitcode)
            for hash, (process, _) in self.running.items()
            if process.exitcode is not None
        ]
        for trial in ended:
            self._forget(trial.hash)
        lost, self.lost = self.lost, []
        return lost + ended

    def _forget(self, hash: str) -> None:
        process, lease = self.running.pop(hash)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # ranks and loaders that outlived their trial
        self.free.append(lease)

    def end(self, hash: str, *, kill: bool) -> None:
        process = self.running[hash][0] if hash in self.running else None
        if process and not kill:
            process.terminate()
        elif process:
            # a trial just born has no group of its own yet
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()

    def close(self) -> None:
        for hash in self.running:
            self.end(hash, kill=True)
        for hash, (process, _) in list(self.running.items()):
            process.join()
            self._forget(hash)


@contextmanager
def _no_main() -> Iterator[None]:
    """Hide the main module: else each child would import it again, and a script without a guard
    would run once more.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _trial(folder: Path, function: str, lease: Lease) -> None:
    """Body of a forked trial: its own session, its own log, gone with its coordinator."""
    from attnres_lab.sweep.process import execute

    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        log = os.open(RunFolder(folder).log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        os._exit(UNWRITABLE)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
    threading.Thread(target=_follow_coordinator, daemon=True).start()
    lease.take()
    code = execute(folder, function)
    os._exit(code)


def _follow_coordinator() -> None:
    """Kill this trial and all its children when the coordinator is gone: nobody would record how it
    ends.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)
