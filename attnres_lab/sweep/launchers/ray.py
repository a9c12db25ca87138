"""Tasks on an existing Ray cluster (Ray Core). A task is a process of its own that ends with its
worker, its node and its coordinator.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attnres_lab.errors import UserError
from attnres_lab.sweep.launchers.base import Count, Ended, Launcher, LauncherConfig

if TYPE_CHECKING:
    from attnres_lab.sweep.spec import Resources


@dataclass(frozen=True)
class RayConfig(LauncherConfig):
    """Tasks on an existing Ray cluster that shares this folder; token authentication stays on."""

    name: Literal["ray"]
    address: str = "auto"
    workers: Count = 100
    """Tasks submitted at a time."""


class RayLauncher(Launcher):
    """Ray places the tasks; retries are the coordinator's business, not Ray's."""

    Config = RayConfig

    def __init__(
        self, config: RayConfig, resources: Resources, function: str, folder: Path
    ) -> None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        try:
            import ray
        except ImportError:
            raise UserError(
                "launcher.name: ray is not installed; pip install attnres-lab[ray]"
            ) from None
        self.ray, self.function, self.slots = ray, function, config.workers
        try:
            ray.init(address=config.address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray raises many kinds
            raise UserError(
                f"launcher.address: no Ray cluster answers at {config.address} "
                f"({str(error).splitlines()[0]})"
            ) from None
        self.task = ray.remote(
            num_cpus=resources.threads, num_gpus=resources.devices, max_retries=0
        )(subprocess.call)
        self.threads = resources.threads
        self.running: dict[str, Any] = {}

    def start(self, folder: Path) -> None:
        # else a task has its node's environment
        names = [k for k in os.environ if k.startswith("ATTNRES_") or k == "PYTHONPATH"]
        settings = [f"OMP_NUM_THREADS={self.threads}", *(f"{k}={os.environ[k]}" for k in names)]
        python = [sys.executable, "-m", "attnres_lab.sweep.process"]
        command = shlex.join(["env", *settings, *python, str(folder), self.function, "--follow"])
        log = shlex.quote(str(folder / "log.txt"))
        script = f"cd {shlex.quote(os.getcwd())} && exec {command} >>{log} 2>&1"
        self.running[folder.name] = self.task.remote(["bash", "-c", script])

    def wait(self, seconds: float) -> list[Ended]:
        by_task = {task: hash for hash, task in self.running.items()}
        if not by_task:
            return []
        done, _ = self.ray.wait(list(by_task), num_returns=len(by_task), timeout=seconds)
        ended = []
        for task in done:
            hash = by_task[task]
            try:
                ended.append(Ended(hash, self.ray.get(task)))
            except self.ray.exceptions.OutOfMemoryError:
                ended.append(Ended(hash, None, "out_of_memory"))
            except self.ray.exceptions.RayError:  # its worker or its node is gone
                ended.append(Ended(hash, None))
            del self.running[hash]
        return ended

    def end(self, hash: str, *, kill: bool) -> None:
        """The stop file in its folder asks a task to end; a task that still waits for a node is
        taken back.
        """
        if kill and hash in self.running:
            self.ray.cancel(self.running[hash], force=True)

    def close(self) -> None:
        for hash in self.running:
            self.end(hash, kill=True)
        self.ray.shutdown()
