"""What the engine asks of a launcher, and what its config and the rest of a sweep file share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from attnres_lab.runs.failures import Fate

if TYPE_CHECKING:
    from attnres_lab.sweep.schema import Resources

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
#: Goes into a batch script: no character that a shell or Slurm could read as anything but itself.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:,@%+=/-]*$")]


@dataclass(frozen=True)
class Strict:
    """Part of a sweep file: no unknown keys, no NaN; docstrings become the schema's."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


@dataclass(frozen=True)
class LauncherConfig(Strict):
    """Base of all launchers' configs. Each adds ``name: Literal[<its key in the registry>]``, and
    ``workers``, how many trials are started at a time.
    """

    if TYPE_CHECKING:
        name: str
        workers: int | None


@dataclass(frozen=True)
class Ended:
    """A trial whose process is gone; ``code`` as of subprocess (negative: killed by that signal),
    None where nobody knows.
    """

    hash: str
    code: int | None
    fate: Fate = ""


class Launcher(ABC):
    """Starts trials and says when they ended; everything else is read from the run folders. A trial
    is called by its hash, which is the name of its folder, and the folder holds its config.
    """

    Config: ClassVar[type[LauncherConfig]]
    here: ClassVar[bool] = False  # whether trials run on this machine, which then prices them
    limits_time: ClassVar[bool] = False  # whether it enforces resources.time_limit itself
    spreads: ClassVar[bool] = False  # whether a trial may have several nodes
    slots: int  # trials at a time

    @abstractmethod
    def __init__(self, config: Any, resources: Resources, function: str, folder: Path) -> None:
        """For the sweep in ``folder`` (absolute), whose trials run ``function`` ("module:name").
        Raises UserError where it cannot work here.
        """

    @classmethod
    def refusal(cls, config: Any, resources: Resources) -> str:
        """Why it cannot give trials these resources, after the key; empty where it can. Known
        from the sweep file alone.
        """
        if resources.nodes > 1 and not cls.spreads:
            return (
                f"resources.nodes: {config.name} trials stay on one node; take launcher.name: "
                "slurm or ray, or nodes: 1"
            )
        return ""

    @classmethod
    def expected_slots(cls, config: LauncherConfig, resources: Resources) -> int:
        """Trials at a time, before anything is leased."""
        return config.workers or 1

    def adopt(self) -> list[str]:
        """Trials that an earlier coordinator started and that still run; none where trials end with
        their coordinator.
        """
        return []

    @abstractmethod
    def start(self, folder: Path) -> None:
        """Start the trial in ``folder`` in a free slot."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Ended]:
        """Trials that ended, as soon as there is one."""

    @abstractmethod
    def end(self, hash: str, *, kill: bool) -> None:
        """Ask a trial to write a checkpoint and end; or end it at once with all its children."""

    @abstractmethod
    def close(self) -> None:
        """Free everything; trials that end with their coordinator are killed."""
