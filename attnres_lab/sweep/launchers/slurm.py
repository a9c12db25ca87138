"""Job arrays on Slurm. Jobs outlive their coordinator: the next one finds them in the queue and
does not submit them again.

What a trial did is read from its status file, then from squeue, which knows for some minutes how a
job ended, then from sacct where there is one. Slurm itself never requeues: the coordinator submits
anew what was preempted or ran out of time, and the trial goes on from its checkpoint.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from attnres_lab.errors import UserError
from attnres_lab.runs.failures import Fate
from attnres_lab.runs.folder import DONE, RunFolder, write_atomic
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep.launchers.base import Count, Ended, Launcher, LauncherConfig, Word
from attnres_lab.training.ranks import SPREAD, TIMEOUT

if TYPE_CHECKING:
    from attnres_lab.sweep.schema import Resources

#: Seconds between two looks at the queue.
POLL = 2.0
#: Seconds before its time limit at which a trial is asked to write a checkpoint.
NOTICE = 60
#: How a job can have ended, and what that makes of a trial that left no status.
FATES: dict[str, Fate] = {
    "PREEMPTED": "stopped",
    "TIMEOUT": "stopped",
    "DEADLINE": "stopped",
    "OUT_OF_MEMORY": "out_of_memory",
    "NODE_FAIL": "node_lost",
    "BOOT_FAIL": "node_lost",
}
OVER = (*FATES, "COMPLETED", "CANCELLED", "FAILED")


Share = Annotated[str, Field(pattern=r"^[A-Za-z]\w*:[1-9][0-9]*$")]


@dataclass(frozen=True)
class SlurmConfig(LauncherConfig):
    """Job arrays on a Slurm cluster that shares this folder."""

    name: Literal["slurm"]
    workers: Count = 100
    """Jobs in the queue at a time."""
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    gres: Word | None = None
    """By default gpu:N for resources.devices = N, and a share where that is below 1."""
    share: Share | None = None
    """The gres of a share of a GPU, and how many of them a GPU has: shard:4, mps:100."""
    constraint: Word | None = None
    setup: str = ""
    """Shell lines before the trial, for example module load; run as they are."""


class SlurmLauncher(Launcher):
    """Submits what ``start`` collected as arrays, chunked below MaxArraySize."""

    Config = SlurmConfig
    limits_time = True
    spreads = True

    def __init__(
        self, config: SlurmConfig, resources: Resources, function: str, folder: Path
    ) -> None:
        self.config, self.resources, self.function = config, resources, function
        self.folder = folder / "slurm"
        self.slots = config.workers
        self.new: list[Path] = []  # folders to submit
        self.jobs: dict[str, str] = {}  # hash -> 12_3
        self.missing: set[str] = set()  # ended without a status, at the last look
        self.polled = -POLL
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config"))
        self.chunk = int(found[1]) - 1 if found else 1000

    @classmethod
    def refusal(cls, config: Any, resources: Resources) -> str:
        if resources.shared > 1 and not (config.gres or config.share):
            return (
                f"resources.devices: {resources.devices:g} needs a cluster that shares GPUs; set "
                "launcher.share to the gres of a share and how many a GPU has (shard:4, mps:100), "
                "or give whole devices"
            )
        return super().refusal(config, resources)

    def adopt(self) -> list[str]:
        """A job is named after the list of folders that its array was submitted with."""
        for job, (state, name) in self._queue().items():
            listing = self.folder / f"{name.rpartition('-')[2]}.txt"
            if state not in OVER and listing.exists():
                folder = listing.read_text().splitlines()[int(job.partition("_")[2])]
                self.jobs[Path(folder).name] = job
        return list(self.jobs)

    def start(self, folder: Path) -> None:
        self.new.append(folder)

    def wait(self, seconds: float) -> list[Ended]:
        while self.new:
            self._submit(self.new[: self.chunk])
            del self.new[: self.chunk]
        time.sleep(seconds)
        if time.monotonic() - self.polled < POLL or not self.jobs:
            return []
        self.polled = time.monotonic()
        try:
            queue = self._queue()
        except UserError:  # the controller is unreachable; the jobs go on
            return []
        ended = []
        for hash, job in list(self.jobs.items()):
            state = queue.get(job, ("", ""))[0]
            if state and state not in OVER:
                continue
            left = SweepFolder(self.folder.parent).trial(hash).status().state
            if left in DONE or left in ("failed", "stopped") or hash in self.missing:
                ended.append(Ended(hash, None, FATES.get(state or _account(job), "")))
                del self.jobs[hash]
                self.missing.discard(hash)
            else:
                self.missing.add(hash)  # a slow file system may show its last status a little later
        return ended

    def end(self, hash: str, *, kill: bool) -> None:
        waiting = [folder for folder in self.new if folder.name == hash]
        for folder in waiting:
            self.new.remove(folder)
            self.jobs[hash] = "never submitted"
        if (job_id := self.jobs.get(hash)) and not waiting:
            # a job that has just ended cannot be signalled, and squeue tells what became of it
            with suppress(UserError):
                pending = self._queue().get(job_id, ("", ""))[0] == "PENDING"
                _call("scancel", *([] if kill or pending else ["--batch", "--signal=TERM"]), job_id)

    def close(self) -> None:
        """Jobs go on; the next coordinator adopts them."""

    def _queue(self) -> dict[str, tuple[str, str]]:
        """State and name by job id, of jobs that have just ended, too. Raises UserError while the
        controller does not answer.
        """
        lines = _call(
            "squeue", "--noheader", "--array", "--me", "--states=all", "--format=%i %T %j"
        ).splitlines()
        return {
            job: (state, name) for job, state, name in (line.split(maxsplit=2) for line in lines)
        }

    def _submit(self, folders: list[Path]) -> None:
        self.folder.mkdir(exist_ok=True)
        stem = self.folder / f"{time.time_ns()}"
        write_atomic(
            stem.with_suffix(".txt"), "".join(f"{folder}\n" for folder in folders).encode()
        )
        # setup may hold a token
        write_atomic(
            stem.with_suffix(".sh"), self._script(stem, len(folders)).encode(), private=True
        )
        number = (
            _call("sbatch", "--parsable", str(stem.with_suffix(".sh"))).strip().partition(";")[0]
        )
        self.jobs |= {folder.name: f"{number}_{index}" for index, folder in enumerate(folders)}

    def _script(self, stem: Path, count: int) -> str:
        config, resources = self.config, self.resources
        apart = resources.nodes > 1  # then a task is a process of the trial, else it is all of them
        options = {
            "job-name": f"attnres-{self.folder.parent.name}-{stem.name}",
            "array": f"0-{count - 1}",
            "nodes": resources.nodes if apart else None,
            "ntasks-per-node": resources.ranks if apart else None,
            "cpus-per-task": resources.threads * (1 if apart else resources.ranks),
            "output": "/dev/null",
            "signal": f"B:TERM@{NOTICE}",
            "time": math.ceil(60 * resources.time_limit + NOTICE / 60)
            if resources.time_limit
            else None,
            "partition": config.partition,
            "account": config.account,
            "qos": config.qos,
            "constraint": config.constraint,
            "gres": config.gres or _gres(resources, config.share),
        }
        command = shlex.join([sys.executable, "-m", "attnres_lab.sweep.process"])
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH --{key}={value}" for key, value in options.items() if value),
            "#SBATCH --no-requeue",
            # those of the setup too, for sbatch reads none below the first command
            *(line for line in config.setup.splitlines() if line.startswith("#SBATCH")),
            'folder=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" '
            f"{shlex.quote(str(stem.with_suffix('.txt')))})",
            f'exec >>"{RunFolder("$folder").log}" 2>&1',
            config.setup,
            f"cd {shlex.quote(os.getcwd())}",
            f"export OMP_NUM_THREADS={resources.threads}",
            *(_spread(resources) if apart else ()),
            f'exec {command} "$folder" {shlex.quote(self.function)}',
        ]
        return "\n".join([*lines, ""])


def _gres(resources: Resources, share: str | None) -> str | None:
    """What a trial needs of each node's devices."""
    if share and resources.shared > 1:
        name, _, count = share.partition(":")
        return f"{name}:{math.ceil(resources.devices * int(count) - 1e-9)}"
    return f"gpu:{resources.whole}" if resources.whole else None


def _spread(resources: Resources) -> list[str]:
    """Shell lines for a trial over several nodes: its first process, on the first node, starts the
    others by srun. They meet at the address at which Slurm itself reaches that node.
    """
    srun = shlex.join(
        [
            "srun",
            f"--nodes={resources.nodes}",
            f"--ntasks-per-node={resources.ranks}",
            f"--cpus-per-task={resources.threads}",
            "--distribution=block",
            "--kill-on-bad-exit=1",
        ]
    )
    address = "scontrol show node \"$SLURMD_NODENAME\" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p'"
    return [
        f"export MASTER_ADDR=${{MASTER_ADDR:-$({address})}}",
        f"export {SPREAD}={shlex.quote(srun)} {TIMEOUT}={resources.node_timeout:g}",
    ]


def _account(job: str) -> str:
    """How a job that squeue has forgotten ended; empty where there is no accounting."""
    options = ("--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={job}")
    with suppress(UserError):
        return (_call("sacct", *options).split() or [""])[0]
    return ""


def _call(*command: str) -> str:
    """Output of a Slurm command. Raises UserError with what Slurm said."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except FileNotFoundError:
        raise UserError(
            f"launcher.name: slurm, but there is no {command[0]} here; run this on a login node"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]}: no answer within a minute") from None
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"{command[0]}: {(error.stderr or 'failed').strip().splitlines()[-1]}"
        ) from None
