"""One record for each trial of a sweep, what is planned and the state it is in; and what the sweep
does next, as a pure function of its trials, the time and the slots.

No files, no clock, no threads: the coordinator observes, asks ``decide``, and carries out the
answer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from attnres_lab.config import RunConfig, content_hash
from attnres_lab.runs.folder import DONE, Status
from attnres_lab.runs.sweep import Entry
from attnres_lab.sweep.process import TRAIN
from attnres_lab.sweep.schema import Retry

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


def trial_hash(config: RunConfig, function: str) -> str:
    """Of the config, and where a function of the user's takes the place of training, of its place,
    module:name.
    """
    trained = content_hash(config)
    if function == TRAIN:
        return trained
    return hashlib.sha256(f"{trained} {function}".encode()).hexdigest()[:12]


def misspent(config: RunConfig, result: Mapping[str, Any]) -> str:
    """Why a run of a FLOP budget is no IsoFLOP run: it spends more than 1 % more or less. Empty
    where all is well.
    """
    budget, spent = config.budget, result.get("flops")
    if budget.unit != "flops" or spent is None or abs(spent / budget.value - 1) <= 0.01:
        return ""
    return f"whole steps spend {spent:.4g} FLOPs of a budget of {budget}, more than 1 % off"


PATIENCE = 600.0  # seconds that a trial may take to write its last checkpoint

What = Literal[
    "adopt",  # it runs already: wait for its end
    "start",
    "retry",  # it ended without a result: again at ``at``
    "give_up",  # it ended without a result: not again in this run
    "leave",  # it was stopped on request: another run goes on with it
    "finish",  # it has a result
    "drop",  # its point was given up before it ran: pruned
    "prune",  # ask it to write a checkpoint and end, for its point is given up
    "stop",  # ask it to write a checkpoint and end
    "kill",  # end it at once
    "propose",  # ask the plan for further trials
    "end",  # nothing is left to do or to wait for
]
#: The states that end a trial, by what brings it there.
ENDS: dict[What, State] = {
    "give_up": "exhausted",
    "leave": "left",
    "finish": "done",
    "drop": "done",
}


@dataclass(frozen=True)
class Action:
    """Something to carry out on one trial (its hash); the last two kinds are of the sweep."""

    what: What
    trial: str
    at: float


@dataclass(frozen=True)
class Situation:
    """What holds for all trials: the rules of the sweep, and how things stand."""

    retry: Retry
    time_limit: float | None = None  # seconds, where the launcher does not enforce it
    turns: Literal["", "first", "each"] = ""  # seeds of a point wait for its first, or each other
    requests: int = 0  # to stop: one asks the trials, the second kills them
    halted: bool = False  # a stop rule is reached
    more: bool = False  # the plan may have further trials
    eager: bool = False  # ask the plan at once, not only for what would be left free
    smallest: bool = False  # start these first, not the largest


def decide(trials: Mapping[str, Trial], now: float, slots: int, sweep: Situation) -> list[Action]:
    """What to do at ``now`` with ``slots`` trials at a time; empty: wait until something happens.

    Every action, once carried out, changes a trial (``after``) or the situation, so asking until
    the answer is empty or ``end`` comes to an end. ``trials`` are in the order of the plan.
    """
    if ended := [t for t in trials.values() if t.state == "ended"]:
        return [_conclude(trial, now, sweep) for trial in ended]  # before all that builds on it
    given_up = {t.entry.point for t in trials.values() if t.given_up}
    running, idle, actions = [], [], []
    for hash, trial in trials.items():
        if trial.state == "running":
            running.append(trial)
            if what := _ending(trial, now, sweep, given_up):
                actions.append(Action(what, hash, now))
        elif trial.state in ("pending", "waiting"):
            idle.append(trial)
            if trial.elsewhere or trial.entry.point in given_up:
                actions.append(Action("adopt" if trial.elsewhere else "drop", hash, now))
    if actions:
        return actions
    closing = sweep.requests > 0 or sweep.halted
    free = slots - len(running)
    full = bool(running) and free <= 0  # then nothing follows from what could start
    if sweep.more and sweep.eager and not closing and free > 0:
        return [Action("propose", "", now)]
    startable = [] if closing or full else _startable(trials, idle, now, sweep)
    actions = [Action("start", t.entry.hash, now) for t in startable[: max(0, free)]]
    if sweep.more and not closing and len(startable) < free:
        actions.append(Action("propose", "", now))
    expected = startable or sweep.more or any(t.at > now for t in idle if t.state == "waiting")
    if not running and not actions and (closing or not expected):
        actions.append(Action("end", "", now))
    return actions


def after(trial: Trial, action: Action) -> Trial:
    """The trial once the action is carried out."""
    what, at = action.what, action.at
    if what in ("start", "adopt"):
        return trial.to("running", at=at, elsewhere=False, asked="", killed=False)
    if what == "retry":
        attempts = trial.attempts + _counts(trial)
        return trial.to("waiting", at=at, attempts=attempts, step=trial.reached)
    if what in ("prune", "stop"):
        return replace(trial, asked=what, asked_at=trial.asked_at if trial.asked else at)
    if what == "kill":
        return replace(trial, killed=True, asked_at=at)
    return trial.to(ENDS[what])


def _conclude(trial: Trial, now: float, sweep: Situation) -> Action:
    """What follows the end of an attempt: what was preempted or ran out of time goes on at once,
    as long as it gets on; what failed later, if the policy allows.
    """
    hash, status, policy = trial.entry.hash, trial.status, sweep.retry
    if status.state in DONE:
        return Action("finish", hash, now)
    if status.state != "failed" and sweep.requests:
        return Action("leave", hash, now)
    if not _counts(trial):
        return Action("retry", hash, now)
    allowed = {"out_of_memory": policy.out_of_memory, "config": 0, "bug": 0}.get(
        str(status.failure), policy.infrastructure
    )
    if trial.attempts >= allowed or sweep.requests:
        return Action("give_up", hash, now)
    return Action("retry", hash, now + policy.backoff * 2**trial.attempts)


def _counts(trial: Trial) -> bool:
    """Whether the attempt that ended counts against the policy: it failed, or got nowhere."""
    return trial.status.state == "failed" or trial.reached <= trial.step


def _ending(
    trial: Trial, now: float, sweep: Situation, given_up: set[str]
) -> Literal["", "prune", "stop", "kill"]:
    """How a running trial is to be ended now, if at all."""
    if sweep.requests and trial.asked != "stop":
        return "stop"
    if (sweep.requests > 1 and not trial.killed) or (
        trial.asked and now - trial.asked_at > PATIENCE
    ):
        return "kill"
    if not trial.asked and trial.entry.point in given_up:
        return "prune"
    late = sweep.time_limit is not None and now - trial.at > sweep.time_limit
    return "stop" if late and not trial.asked else ""


def _startable(
    trials: Mapping[str, Trial], idle: list[Trial], now: float, sweep: Situation
) -> list[Trial]:
    """Who may start now, the largest first, or the smallest; where points may be pruned, begun
    points before new ones, for a pruner compares with complete ones.
    """
    ready = [t for t in idle if t.state == "pending" or t.at <= now]
    begun = set()
    if sweep.turns and ready:
        points: dict[str, list[Trial]] = {}
        for trial in trials.values():
            if trial.state == "done":
                begun.add(trial.entry.point)
            elif trial.state != "skipped":
                points.setdefault(trial.entry.point, []).append(trial)
        ready = [
            t
            for t in ready
            if t is points[t.entry.point][0] or (sweep.turns == "first" and t.entry.point in begun)
        ]
    sign = 1.0 if sweep.smallest else -1.0
    return sorted(
        ready,
        key=lambda t: -math.inf if t.entry.point in begun else sign * (t.entry.flops or 0.0),
    )
