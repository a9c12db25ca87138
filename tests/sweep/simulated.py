"""A coordinator's surroundings without files, processes or a clock, for tests of ``decide``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from attnres_lab.runs.failures import LOCKED, of_exit
from attnres_lab.runs.folder import DONE, Status
from attnres_lab.runs.sweep import Entry
from attnres_lab.sweep.schema import Retry
from attnres_lab.sweep.trials import NEXT, Action, Situation, Trial, after

Decider = Callable[[Mapping[str, Trial], float, int, Situation], list[Action]]
POLICY = Retry(infrastructure=2, out_of_memory=1, backoff=1.0)
STEPS = 3  # of a whole trial
LIMIT = 15.0  # seconds of an attempt
NAMES = "abcdef"
SEEDS = 2  # trials a, b are the seeds of one point, c, d of another, ...


@dataclass
class World:
    """What is outside of a coordinator: folders, processes, the plan, the clock."""

    decider: Decider
    turns: Any = ""
    survives: bool = False  # whether trials outlive their coordinator, as on Slurm
    cursed: frozenset[str] = frozenset()  # die at once, whenever they are started
    late: int = 0  # trials that the plan holds back until the others are over
    tuned: bool = False  # asks the plan at once, and starts the smallest first
    slots: int = 2
    clock: float = 0.0
    disk: dict[str, Status] = field(default_factory=dict)
    processes: set[str] = field(default_factory=set)  # of trials, whoever waits for them
    locked: set[str] = field(default_factory=set)  # a process that nobody knows holds the folder
    results: Counter[str] = field(default_factory=Counter)

    def status(self, hash: str) -> Status:
        return self.disk.get(hash, Status("scheduled"))

    def write(self, hash: str, state: Any, failure: Any = None, step: int | None = None) -> None:
        assert self.status(hash).state not in DONE, f"{hash} has a result already"
        self.results[hash] += state in DONE
        step = self.status(hash).step if step is None else step
        self.disk[hash] = Status(state, failure, "", step)


class Run:
    """One coordinator's life: as the real one, with a world in place of files and processes."""

    def __init__(self, world: World) -> None:
        self.world, self.requests, self.over = world, 0, False
        self.trials: dict[str, Trial] = {}
        self.more, self.ends = True, Counter[str]()
        self.add(NAMES[: len(NAMES) - world.late])
        if set(world.disk) - set(self.trials):  # the plan on disk grew before the crash
            self.add(NAMES[len(NAMES) - world.late :])
        self.act()

    def add(self, names: str) -> None:
        for name in names:
            status = self.world.status(name)
            trial = Trial(entry(name), None, status=status)  # type: ignore[arg-type]
            if status.state in DONE:
                trial = replace(trial, state="done", given_up=status.state == "pruned")
            elif name in self.world.processes:
                trial = replace(trial, elsewhere=True)
            self.trials[name] = trial

    def act(self) -> None:
        """Until nothing is to be done now; that comes soon."""
        for _ in range(20 * len(NAMES)):
            tuned = {"eager": self.world.tuned, "smallest": self.world.tuned}
            sweep = Situation(
                POLICY, LIMIT, self.world.turns, self.requests, False, self.more, **tuned
            )
            actions = self.world.decider(self.trials, self.world.clock, self.world.slots, sweep)
            if not actions or self.over:
                return
            for action in actions:
                self.carry_out(action)
        raise AssertionError("the coordinator is never idle")

    def carry_out(self, action: Action) -> None:
        if action.what == "end":
            self.over = True
            self.trials = {
                name: t.to("left") if t.state in ("pending", "waiting") else t
                for name, t in self.trials.items()
            }
            return
        if action.what == "propose":
            over = all(t.state in ("done", "exhausted", "left") for t in self.trials.values())
            self.more = over and len(self.trials) < len(NAMES)
            if self.more:
                self.add(NAMES[len(self.trials) :])
            return
        name = action.trial
        trial = self.trials[name] = after(self.trials[name], action)
        self.ends[name] += not NEXT[trial.state]
        assert self.ends[name] <= 1, f"{name} ended twice"
        if action.what in ("finish", "give_up"):
            self.more = True
        if action.what == "start":
            self.start(name)
        elif action.what == "adopt":
            assert name in self.world.processes
        elif action.what == "finish":
            pruned = trial.status.state == "pruned"
            self.trials[name] = replace(trial, given_up=pruned)
        elif action.what == "drop":
            self.world.write(name, "pruned")
            self.trials[name] = replace(trial, status=self.world.status(name))
        elif action.what == "kill":
            self.exit(name, -9)

    def start(self, name: str) -> None:
        world = self.world
        if (status := world.status(name)).state in DONE:  # by who held the folder
            self.trials[name] = self.trials[name].to("ended", status=status, reached=status.step)
            return
        running = [t for t in self.trials.values() if t.state == "running"]
        assert len(running) <= world.slots, "more at a time than slots"
        assert name not in world.processes, f"{name} runs twice at a time"
        world.write(name, "scheduled")
        world.processes.add(name)
        if name in world.locked:
            self.exit(name, LOCKED)
        elif name in world.cursed:
            self.exit(name, -9)

    def exit(self, name: str, code: int | None, fate: Any = "") -> None:
        """The process of a trial is gone."""
        if name not in self.world.processes:
            return
        self.world.processes.discard(name)
        trial, status = self.trials[name], self.world.status(name)
        state, failure, _ = of_exit(status, code, fate, asked=bool(trial.asked))
        if state != status.state:
            self.world.write(name, state, failure)
        status = self.world.status(name)
        self.trials[name] = trial.to("ended", status=status, reached=status.step)

    def progress(self, name: str) -> None:
        """A step; a trial that was asked to end, does; one that is complete has a result."""
        if name not in self.world.processes:
            return
        asked, step = self.trials[name].asked, self.world.status(name).step + 1
        if asked:
            self.world.write(name, "pruned" if asked == "prune" else "stopped")
        elif step == STEPS:
            self.world.write(name, "finished", step=step)
        else:
            self.world.write(name, "running", step=step)
            return
        self.exit(name, 0)


def entry(name: str) -> Entry:
    index = NAMES.index(name)
    return Entry(name, str(index // SEEDS), {}, "", "", index % SEEDS, name, 1, 1.0 + index, 1)


def happen(run: Run, kind: str, name: str) -> Run:
    """One thing that can happen at any moment."""
    world = run.world
    if kind == "coordinator":
        if not world.survives:
            world.processes.clear()
        return Run(world)
    if kind in CRASHES:
        run.exit(name, *CRASHES[kind])
    elif kind == "step":
        run.progress(name)
    elif kind == "stop":
        run.requests += 1
    elif kind == "slots":
        world.slots = NAMES.index(name) % 4
    elif kind == "locked":
        world.locked ^= {name} - world.processes
    elif kind == "finished elsewhere" and name in world.locked:
        world.locked.discard(name)
        if world.status(name).state not in DONE:
            world.write(name, "finished", step=STEPS)
    elif kind == "given up" and name in world.processes and world.turns:
        run.trials[name] = replace(run.trials[name], given_up=True)
    world.clock += 1000.0 if kind == "nothing for long" else 1.0
    run.act()
    return run


CRASHES: dict[str, tuple[Any, ...]] = {
    "killed": (-9,),
    "gone": (None,),
    "preempted": (None, "stopped"),
    "out of memory": (None, "out_of_memory"),
    "bug": (1,),
}
