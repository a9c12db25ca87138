"""Whatever happens, and in whatever order: each trial ends once, runs once at a time, is not lost,
and the sweep ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnres_lab.runs.failures import LOCKED, of_exit
from attnres_lab.runs.folder import DONE, Status
from attnres_lab.runs.sweep import Entry
from attnres_lab.sweep.decide import Action, Situation, after, decide
from attnres_lab.sweep.spec import Retry
from attnres_lab.sweep.trials import NEXT, Trial

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
            sweep = Situation(POLICY, LIMIT, self.world.turns, self.requests, False, self.more)
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
KINDS = (
    *("step", "step", "coordinator", "stop", "slots", "locked", "finished elsewhere", "given up"),
    *("nothing for long", *CRASHES),
)
EVENTS = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(NAMES)), max_size=40)
WORLDS = st.fixed_dictionaries(
    {
        "turns": st.sampled_from(["", "first", "each"]),
        "survives": st.booleans(),
        "cursed": st.frozensets(st.sampled_from(NAMES), max_size=2),
        "late": st.sampled_from([0, SEEDS]),
    }
)


def play(decider: Decider, setting: dict[str, Any], events: list[tuple[str, str]]) -> None:
    """Events, then no more of them: the sweep ends in good order, and another run, in which
    nothing goes wrong, finishes what it left.
    """
    world = World(decider, **setting)
    run = Run(world)
    for event in events:
        if not run.over:
            run = happen(run, *event)
    finish(run)
    if not run.requests:
        for trial in run.trials.values():
            blocked = world.turns and any(
                t.state == "exhausted" and t.entry.point == trial.entry.point
                for t in run.trials.values()
            )
            assert trial.state != "left" or blocked, f"{trial.entry.hash} is lost"
    world.cursed = frozenset()
    last = Run(world)
    finish(last)
    assert {t.state for t in last.trials.values()} == {"done"}
    assert world.results == dict.fromkeys(NAMES, 1)


def finish(run: Run) -> None:
    """From here on nothing goes wrong."""
    world = run.world
    world.locked.clear()
    world.slots = 2
    for _ in range(100):
        if run.over:
            break
        for name in sorted(world.processes):
            run.progress(name)
        world.clock += 10.0
        run.act()
    assert run.over, "it never ends"
    assert not world.processes
    for name, trial in run.trials.items():
        assert not NEXT[trial.state], f"{name} is lost: {trial.state}"
        assert trial.state != "done" or world.status(name).state in DONE


def check(decider: Decider) -> None:
    @settings(max_examples=400, deadline=None, database=None, derandomize=True)
    @given(WORLDS, EVENTS)
    def holds(setting: dict[str, Any], events: list[tuple[str, str]]) -> None:
        play(decider, setting, events)

    holds()


def test_every_trial_ends_once_runs_once_at_a_time_and_is_not_lost() -> None:
    check(decide)


def runs_twice(
    trials: Mapping[str, Trial], now: float, slots: int, sweep: Situation
) -> list[Action]:
    """Does not see that a process of an earlier coordinator still runs a trial."""
    seen = {hash: replace(trial, elsewhere=False) for hash, trial in trials.items()}
    return decide(seen, now, slots, sweep)


def loses_after_a_crash(
    trials: Mapping[str, Trial], now: float, slots: int, sweep: Situation
) -> list[Action]:
    """Leaves a trial that was killed to nobody."""
    actions = decide(trials, now, slots, sweep)
    return [
        replace(a, what="leave")
        if a.what == "retry" and trials[a.trial].status.failure == "killed"
        else a
        for a in actions
    ]


def never_ends(
    trials: Mapping[str, Trial], now: float, slots: int, sweep: Situation
) -> list[Action]:
    """Forgets how often a trial was tried."""
    return decide({h: replace(t, attempts=0) for h, t in trials.items()}, now, slots, sweep)


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (runs_twice, "runs twice at a time"),
        (loses_after_a_crash, "is lost"),
        (never_ends, "it never ends"),
    ],
)
def test_planted_bugs_are_caught(planted: Decider, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(planted)


def planned(*states: Any, **changes: Any) -> dict[str, Trial]:
    return {
        name: Trial(entry(name), None, state=state, **changes)  # type: ignore[arg-type]
        for name, state in zip(NAMES, states, strict=False)
    }


def what(trials: Mapping[str, Trial], slots: int = 2, **sweep: Any) -> list[tuple[str, str]]:
    found = decide(trials, 50.0, slots, Situation(POLICY, **sweep))
    return [(action.what, action.trial) for action in found]


def test_the_largest_start_first_and_begun_points_before_new_ones() -> None:
    assert what(planned("pending", "pending", "pending")) == [("start", "c"), ("start", "b")]
    trials = planned("done", "pending", "pending")
    assert what(trials, turns="first") == [("start", "b"), ("start", "c")]


def test_seeds_take_turns_where_points_may_be_given_up() -> None:
    trials = planned("running", "pending", "pending", "pending")
    assert what(trials, 4, turns="first") == [("start", "c")]
    assert what(planned("done", "running", "pending"), 4, turns="each") == [("start", "c")]
    assert what(planned("exhausted", "pending"), turns="first") == [("end", "")]


def test_a_plan_is_asked_for_more_before_a_sweep_ends() -> None:
    assert what(planned("done"), more=True) == [("propose", "")]
    assert what(planned("running"), more=True) == [("propose", "")]
    assert what(planned("running", "running"), more=True) == []
    assert what(planned("pending"), 0, more=True) == []
    assert what(planned("done"), more=True, halted=True) == [("end", "")]


def test_a_trial_out_of_time_is_asked_and_a_deaf_one_is_killed() -> None:
    assert what(planned("running", at=30.0), time_limit=10.0) == [("stop", "a")]
    assert what(planned("running", asked="stop", asked_at=40.0), time_limit=10.0) == []
    assert what(planned("running", asked="stop", asked_at=-600.0)) == [("kill", "a")]


def test_no_trial_goes_where_none_can() -> None:
    with pytest.raises(ValueError, match="a: from done to running"):
        planned("done")["a"].to("running")
