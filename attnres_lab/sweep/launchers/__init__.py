"""Where trials run: one small file for each launcher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from attnres_lab.runs.failures import Fate
from attnres_lab.sweep.spec import Local, Ray, Slurm, SweepSpec


@dataclass(frozen=True)
class Job:
    """A trial to start: its folder holds config.yaml."""

    hash: str
    folder: Path


@dataclass(frozen=True)
class Ended:
    """A trial whose process is gone; ``code`` as of subprocess (negative: killed by that signal),
    None where nobody knows.
    """

    hash: str
    code: int | None
    fate: Fate = ""


class Launcher(Protocol):
    """Starts trials and says when they ended; everything else is read from the run folders."""

    slots: int  # trials at a time
    limits_time: bool  # whether it enforces resources.time_limit itself

    def adopt(self) -> list[str]:
        """Hashes of trials that an earlier coordinator started and that still run."""

    def start(self, job: Job) -> None:
        """Start a trial in a free slot."""

    def wait(self, seconds: float) -> list[Ended]:
        """Trials that ended, as soon as there is one."""

    def end(self, hash: str, *, kill: bool) -> None:
        """Ask a trial to write a checkpoint and end; or end it at once with all its children."""

    def close(self) -> None:
        """Free everything; trials still running are killed."""


def local_slots(spec: SweepSpec) -> int:
    """Trials at a time, before anything is leased."""
    if not isinstance(spec.launcher, Local):
        return spec.launcher.workers
    from attnres_lab.sweep.launchers.local import make_leases, visible_gpus

    return len(
        make_leases(spec.launcher, spec.resources, visible_gpus() if spec.resources.devices else [])
    )


def make_launcher(spec: SweepSpec, folder: Path) -> Launcher:
    """The launcher that the spec names, for the sweep in ``folder``. Raises UserError where it
    cannot work here.
    """
    if isinstance(spec.launcher, Slurm):
        from attnres_lab.sweep.launchers.slurm import SlurmLauncher

        return SlurmLauncher(spec.launcher, spec.resources, spec.function, folder.absolute())
    if isinstance(spec.launcher, Ray):
        from attnres_lab.sweep.launchers.ray import RayLauncher

        return RayLauncher(spec.launcher, spec.resources, spec.function)
    from attnres_lab.sweep.launchers.local import LocalLauncher

    return LocalLauncher(spec.launcher, spec.resources, spec.function)
