"""Where trials run: a file for each launcher, its config beside it, and a line in the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attnres_lab.sweep.launchers.base import Ended, Launcher, LauncherConfig
from attnres_lab.sweep.launchers.local import LocalConfig, LocalLauncher
from attnres_lab.sweep.launchers.ray import RayLauncher
from attnres_lab.sweep.launchers.slurm import SlurmLauncher

if TYPE_CHECKING:
    from attnres_lab.sweep.schema import SweepSpec

REGISTRY: dict[str, type[Launcher]] = {
    "local": LocalLauncher,
    "slurm": SlurmLauncher,
    "ray": RayLauncher,
}
DEFAULT = LocalConfig()

__all__ = [
    "DEFAULT",
    "REGISTRY",
    "Ended",
    "Launcher",
    "LauncherConfig",
    "expected_slots",
    "make_launcher",
]


def make_launcher(spec: SweepSpec, folder: Path) -> Launcher:
    """The launcher that the spec names, for the sweep in ``folder``. Raises UserError where it
    cannot work here.
    """
    cls = REGISTRY[spec.launcher.name]
    return cls(spec.launcher, spec.resources, spec.function, folder.absolute())


def expected_slots(spec: SweepSpec) -> int:
    """Trials at a time, before anything is leased."""
    return REGISTRY[spec.launcher.name].expected_slots(spec.launcher, spec.resources)
