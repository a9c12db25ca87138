"""Tasks on an existing Ray cluster (Ray Core). A task is a process of its own that ends with its
worker, its node and its coordinator; a trial over several nodes is a task on each.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attnres_lab.errors import UserError
from attnres_lab.runs import RunFolder
from attnres_lab.sweep.launchers.base import Count, Ended, Launcher, LauncherConfig
from attnres_lab.training.ranks import GRACE, TIMEOUT

if TYPE_CHECKING:
    from attnres_lab.sweep.schema import Resources


@dataclass(frozen=True)
class RayConfig(LauncherConfig):
    """Tasks on an existing Ray cluster that shares this folder; token authentication stays on."""

    name: Literal["ray"]
    address: str = "auto"
    workers: Count = 100
    """Tasks submitted at a time."""


@dataclass
class Placed:
    """A trial's tasks, the one that holds its folder first, and the nodes set aside for them."""

    tasks: list[Any]
    group: Any = None  # None: one task, wherever there is room
    since: float = field(default_factory=time.monotonic)  # its nodes have been too few
    failed: float | None = None  # when one of the other tasks did


class RayLauncher(Launcher):
    """Ray places the tasks; retries are the coordinator's business, not Ray's."""

    Config = RayConfig
    spreads = True

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
        self.resources = resources
        self.share = {"CPU": resources.threads * resources.ranks, "GPU": resources.devices}
        options = {"num_cpus": self.share["CPU"], "num_gpus": self.share["GPU"]}
        self.task = ray.remote(max_retries=0, **options)(_node())
        self.meeting = ray.remote(max_retries=0, num_cpus=0)(_meeting())
        self.running: dict[str, Placed] = {}

    def start(self, folder: Path) -> None:
        # else a task has its node's environment
        names = [k for k in os.environ if k.startswith("ATTNRES_") or k == "PYTHONPATH"]
        settings = {k: os.environ[k] for k in names}
        settings["OMP_NUM_THREADS"] = str(self.resources.threads)
        settings[TIMEOUT] = f"{self.resources.node_timeout:g}"
        python = [sys.executable, "-m", "attnres_lab.sweep.process"]
        command = shlex.join([*python, str(folder), self.function, "--follow"])
        log = shlex.quote(str(RunFolder(folder).log))
        script = f"cd {shlex.quote(os.getcwd())} && exec {command} >>{log} 2>&1"
        if self.resources.nodes == 1:
            self.running[folder.name] = Placed([self.task.remote(script, settings)])
        else:
            self.running[folder.name] = self._spread(script, settings)

    def _spread(self, script: str, settings: dict[str, str]) -> Placed:
        """A task on each of several nodes, as soon as all are free; they meet on the first."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Place

        bundle = {name: amount for name, amount in self.share.items() if amount}
        group = self.ray.util.placement_group([bundle] * self.resources.nodes, "STRICT_SPREAD")
        places = [Place(group, index) for index in range(self.resources.nodes)]
        meeting = self.meeting.options(scheduling_strategy=places[0]).remote()
        tasks = [
            self.task.options(scheduling_strategy=place).remote(
                script, {**settings, "NODE_RANK": str(index)}, meeting
            )
            for index, place in enumerate(places)
        ]
        return Placed(tasks, group)

    def wait(self, seconds: float) -> list[Ended]:
        tasks = [task for placed in self.running.values() for task in placed.tasks]
        if not tasks:
            time.sleep(seconds)
            return []
        done, _ = self.ray.wait(tasks, num_returns=len(tasks), timeout=seconds)
        return [
            ended
            for hash, placed in list(self.running.items())
            if (ended := self._ended(hash, placed, set(done)))
        ]

    def _ended(self, hash: str, placed: Placed, done: set[Any]) -> Ended | None:
        """How a trial ended, if it did; what is left of it then ends."""
        first, *others = placed.tasks
        found = self._outcome(hash, first) if first in done else None
        if found is None and placed.group:
            failed = [t for t in others if t in done and self._outcome(hash, t).code != 0]
            if failed and placed.failed is None:
                placed.failed = time.monotonic()  # the first will see, and say why
            if placed.failed and time.monotonic() - placed.failed > GRACE:
                found = Ended(hash, None, "node_lost")
            elif not failed and self._never(placed):
                found = Ended(hash, None, "node_missing")
        if found:
            # Not by cancelling: a task that is being completed at that moment, as this one is and
            # those on other nodes may be, makes Ray end this process.
            if placed.group:
                self.ray.util.remove_placement_group(placed.group)  # with what still runs there
            del self.running[hash]
        return found

    def _outcome(self, hash: str, task: Any) -> Ended:
        errors = self.ray.exceptions
        try:
            return Ended(hash, self.ray.get(task))
        except errors.OutOfMemoryError:
            return Ended(hash, None, "out_of_memory")
        except (errors.NodeDiedError, errors.LocalRayletDiedError):
            return Ended(hash, None, "node_lost")
        except errors.RayError:  # its worker is gone
            return Ended(hash, None, "node_lost" if self.resources.nodes > 1 else "")

    def _never(self, placed: Placed) -> bool:
        """Whether the cluster has had too few nodes for a trial for too long; nodes that others
        use are worth waiting for.
        """
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        fit = [all(node.get(k, 0) >= n for k, n in self.share.items()) for node in nodes]
        if sum(fit) >= self.resources.nodes:
            placed.since = time.monotonic()
        return time.monotonic() - placed.since > self.resources.node_timeout

    def end(self, hash: str, *, kill: bool) -> None:
        """The stop file in its folder asks a task to end; a task that still waits for a node is
        taken back.
        """
        if not kill or hash not in self.running:
            return
        placed = self.running[hash]
        for task in placed.tasks:
            self.ray.cancel(task, force=True)
        if placed.group:
            self.ray.util.remove_placement_group(placed.group)

    def close(self) -> None:
        for hash in self.running:
            self.end(hash, kill=True)
        self.ray.shutdown()


def _node() -> Any:
    """What a worker does, as a function that Ray sends as it is: this package need not be on the
    worker's own path.
    """

    def node(script: str, settings: dict[str, str], meeting: tuple[str, int] | None = None) -> int:
        import subprocess

        if meeting:
            settings = {**settings, "MASTER_ADDR": meeting[0], "MASTER_PORT": str(meeting[1])}
        words = [f"{name}={value}" for name, value in settings.items()]
        return subprocess.call(["env", *words, "bash", "-c", script])

    return node


def _meeting() -> Any:
    """An address of a worker's node in the cluster's own network, and a port that is free there."""

    def meeting() -> tuple[str, int]:
        import socket

        import ray

        with socket.socket() as s:
            s.bind(("", 0))
            return ray.util.get_node_ip_address(), s.getsockname()[1]

    return meeting
