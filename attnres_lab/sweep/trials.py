"""One record for each trial of a sweep: what is planned, and the state it is in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from attnres_lab.config import RunConfig
from attnres_lab.runs.folder import Status
from attnres_lab.runs.sweep import Entry

State = Literal[
    "pending",  # may start as soon as there is a slot
    "waiting",  # may start again at ``at``
    "running",  # a process has it, since ``at``
    "ended",  # its process is gone and left ``status``; what follows is not decided yet
    "done",  # it has a result: finished, diverged or pruned
    "exhausted",  # it failed, and is not tried again before another ``sweep run``
    "left",  # the sweep ended before it; another ``sweep run`` takes it up
    "skipped",  # not chosen for this ``sweep run``
]
#: Where each state leads; nothing else can happen to a trial.
NEXT: dict[State, tuple[State, ...]] = {
    "pending": ("running", "done", "left"),
    "waiting": ("running", "done", "left"),
    "running": ("ended",),
    "ended": ("waiting", "done", "exhausted", "left"),
    "done": (),
    "exhausted": (),
    "left": (),
    "skipped": (),
}
UNKNOWN = Status("scheduled")


@dataclass(frozen=True)
class Trial:
    """``entry`` and ``config`` are the plan and never change; the rest is what became of it.

    Times are seconds of the coordinator's clock, steps those of the optimiser.
    """

    entry: Entry
    config: RunConfig
    state: State = "pending"
    at: float = 0.0
    elsewhere: bool = False  # a process that an earlier coordinator started still runs it
    asked: Literal["", "prune", "stop"] = ""  # how its process was asked to end
    asked_at: float = 0.0
    killed: bool = False
    attempts: int = 0  # retries that counted against the policy
    step: int = -1  # where the attempt before the last one ended
    reached: int = 0  # where the last attempt ended
    status: Status = UNKNOWN  # what the last attempt left
    given_up: bool = False  # the pruner gave up its point, judging by this trial

    def to(self, state: State, **changes: Any) -> Trial:
        """The trial in another state. Raises ValueError for a step that no trial can take."""
        if state not in NEXT[self.state]:
            raise ValueError(f"{self.entry.hash}: from {self.state} to {state}")
        return replace(self, state=state, **changes)
