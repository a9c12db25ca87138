"""Whatever happens, and in whatever order: each trial ends once, runs once at a time, is not lost,
and the sweep ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnres_lab.config import RunConfig
from attnres_lab.runs.folder import DONE, Failure, Status
from attnres_lab.sweep.trials import NEXT, Action, Situation, Trial, after, decide
from tests.sweep.simulated import (
    CRASHES,
    NAMES,
    POLICY,
    SEEDS,
    Decider,
    Run,
    World,
    entry,
    happen,
)

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
        "tuned": st.booleans(),
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
    @settings(
        max_examples=400,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
    )
    @given(WORLDS, EVENTS)
    def holds(setting: dict[str, Any], events: list[tuple[str, str]]) -> None:
        play(decider, setting, events)

    holds()


def test_every_trial_ends_once_runs_once_at_a_time_and_is_not_lost() -> None:
    check(decide)


@pytest.mark.parametrize(
    ("failure", "pauses"),
    [
        ("infrastructure", [1.0, 2.0]),
        ("killed", [1.0, 2.0]),
        ("out_of_memory", [1.0]),
        ("bug", []),
        ("config", []),
    ],
)
def test_a_trial_is_tried_again_as_often_as_the_policy_says(
    failure: Failure, pauses: list[float]
) -> None:
    """Each time after twice the pause, however far it came (``POLICY``: 2, of memory 1)."""
    name, waited = NAMES[0], []
    trial = Trial(entry(name), RunConfig(), "running")
    while trial.state != "exhausted":
        ended = trial.to("ended", status=Status("failed", failure), reached=trial.reached + 10)
        (action,) = decide({name: ended}, 0.0, 1, Situation(POLICY))
        trial = after(ended, action)
        if trial.state == "waiting":
            waited.append(action.at)
            trial = trial.to("running")
    assert waited == pauses


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


def test_the_largest_start_first_or_the_smallest() -> None:
    trials = planned("pending", "pending", "pending")
    assert what(trials, 2) == [("start", "c"), ("start", "b")]
    assert what(trials, 2, smallest=True) == [("start", "a"), ("start", "b")]


def test_an_eager_plan_is_asked_before_what_is_pending_starts() -> None:
    trials = planned("done", "pending", "pending")
    assert what(trials, more=True, eager=True) == [("propose", "")]
    assert what(trials, more=False, eager=True) == what(trials)
    assert what(planned("running"), 1, more=True, eager=True) == [], "no slot is free"


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
