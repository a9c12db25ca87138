"""Faults between the lines: each ends as what it is, and costs no more than an attempt."""

from __future__ import annotations

import json
import os
import signal
import time
from itertools import count
from multiprocessing import forkserver
from pathlib import Path
from threading import Thread

import pytest

from attnres_lab.errors import UserError
from attnres_lab.runs.failures import (
    LOCKED,
    REMEDY,
    UNWRITABLE,
    describe,
    of_exception,
    of_exit,
)
from attnres_lab.runs.folder import DONE, Status, write_json
from attnres_lab.sweep.launchers.local import LocalLauncher
from attnres_lab.sweep.optuna_study import OptunaStudy
from tests.sweep.conftest import Lab, in_process, study_states
from tests.sweep.test_crash import CHAIN, check_exact, trial_pids, wait_for


@pytest.mark.parametrize(
    ("code", "fate", "asked", "expected"),
    [
        (-9, "", False, ("failed", "killed", "killed by SIGKILL")),
        (-9, "", True, ("stopped", None, "ended on request")),
        (-9, "out_of_memory", False, ("failed", "out_of_memory", "the node's memory was not")),
        (None, "", False, ("failed", "killed", "the process is gone")),
        (None, "stopped", False, ("stopped", None, "ended by the cluster")),
        (None, "node_lost", False, ("failed", "infrastructure", "a node that it ran on is gone")),
        (None, "node_missing", False, ("failed", "infrastructure", "its nodes never came")),
        (LOCKED, "", False, ("failed", "infrastructure", "another process still holds")),
        (UNWRITABLE, "", False, ("failed", "infrastructure", "the disk failed")),
        (3, "", False, ("failed", "bug", "exit code 3")),
        (0, "", False, ("failed", "bug", "exit code 0")),  # without a word of how it ended
    ],
)
def test_a_trial_that_left_no_end_is_judged_by_its_exit(code, fate, asked, expected) -> None:
    state, failure, message = of_exit(Status("running"), code, fate, asked=asked)
    assert (state, failure) == expected[:2]
    assert message.startswith(expected[2])


@pytest.mark.parametrize("state", [*sorted(DONE), "failed", "stopped"])
@pytest.mark.parametrize("code", [0, 1, -9, None, LOCKED])
def test_what_a_trial_said_of_itself_stands(state, code) -> None:
    said = Status(state, "bug" if state == "failed" else None, "said")
    assert of_exit(said, code, "stopped", asked=True) == (state, said.failure, "said")


def test_exceptions_are_classified() -> None:
    kinds = {
        "bug": [ValueError("x"), FileNotFoundError(2, "x"), RuntimeError("x")],
        "config": [UserError("x")],
        "out_of_memory": [MemoryError()],
        "infrastructure": [OSError(28, "full"), ConnectionResetError(), TimeoutError(), EOFError()],
        "killed": [RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1")],
    }
    for kind, errors in kinds.items():
        assert [of_exception(error) for error in errors] == [kind] * len(errors)


def test_a_failure_is_told_in_a_line_with_its_remedy() -> None:
    assert describe(UserError("model.dim: odd")) == ("config", "model.dim: odd")
    assert describe(ValueError("a\nb")) == ("bug", "ValueError: a")
    assert describe(MemoryError()) == ("out_of_memory", f"MemoryError; {REMEDY}")


def test_a_function_that_says_nothing_is_alive_all_the_same(lab: Lab) -> None:
    """It is held and beats once a second, as training is."""
    coordinator = in_process(lab.run, lab.sweep(space={"seed": [0]}, function=f"{HERE}:sleeps"))
    wait_for(lambda: "running" in lab.states().values())
    (hash,) = lab.states()
    run = lab.folder.trial(hash)
    first = run.last_beat()
    wait_for(lambda: (run.last_beat() or 0) > (first or 0), 5)
    coordinator.join()


def test_a_text_for_an_objective_is_a_failed_trial(lab: Lab) -> None:
    outcome = lab.run(lab.sweep(space={"seed": [0, 1]}, function=f"{HERE}:says_text"))
    assert (outcome.done, outcome.failed, outcome.exit_code) == (1, 1, 1)
    failed = next(lab.folder.trial(e.hash).status() for e in lab.folder.plan() if e.seed == 1)
    assert (failed.state, failed.failure) == ("failed", "bug")
    assert failed.message == "objective.metric: 'val/loss' is 'low', not a number"


@pytest.mark.parametrize("search", [False, True])
def test_a_point_without_its_objective_is_recorded_once_however_often_the_sweep_is_run(
    lab: Lab, search: bool
) -> None:
    """And counts as proposed: no search goes on for ever in want of it."""
    space = {"optim.lr": {"log": [1e-4, 1e-1]}} if search else {"optim.lr": [1e-3, 3e-3, 5e-3]}
    asked = {"sampler": {"name": "random"}, "trials": 3, "stop": {"trials": 9}} if search else {}
    path = lab.sweep(space=space, function=f"{HERE}:says_nothing", **asked)
    for _ in range(2):
        assert lab.run(path).done == 3
        assert study_states(lab) == ["FAIL"] * 3
    for hash in lab.states():
        write_json(lab.folder.trial(hash).result, {"val/loss": 1.0})
    for _ in range(2):
        assert lab.run(path).done == 3
        assert study_states(lab) == ["FAIL"] * 3 + ["COMPLETE"] * 3


def test_a_clock_that_is_set_back_delays_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour at every look: retries are due by the clock that only goes forward."""
    path = lab.sweep(space={"seed": [0, 3, 4]}, function="tests.sweep.synthetic:fails")
    monkeypatch.setattr(time, "time", count(4e9, -3600).__next__)
    began = time.monotonic()
    assert lab.run(path).exit_code == 0
    assert time.monotonic() - began < 120
    assert set(lab.states().values()) == {"finished"}


@pytest.mark.parametrize("moment", ["while it imports", "while it serves"])
def test_the_kill_of_the_fork_server_costs_an_attempt(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The real one, once: its trials count as killed, and are tried again."""
    monkeypatch.setattr("attnres_lab.sweep.launchers.local.START_METHOD", "forkserver")
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.1")
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # that of another test
    killed: list[int] = []
    method = "wait" if moment == "while it serves" else "start"
    original = getattr(LocalLauncher, method)

    def kill() -> None:
        wait_for(lambda: forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]
        killed.append(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]
        os.kill(killed[0], signal.SIGKILL)

    def then_killed(self: LocalLauncher, *args):
        if not killed and method == "start":
            Thread(target=kill).start()
        elif not killed and trial_pids(lab):
            kill()
        return original(self, *args)

    monkeypatch.setattr(LocalLauncher, method, then_killed)
    assert lab.run(lab.sweep(**CHAIN)).exit_code == 0
    assert len(killed) == 1
    check_exact(lab)


def test_a_fork_server_that_dies_while_it_starts_counts_as_a_kill(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(self: object) -> None:
        raise EOFError

    monkeypatch.setattr("multiprocessing.context.ForkProcess.start", dies)
    path = lab.sweep(space={"seed": [0]}, retry={"backoff": 0.01, "infrastructure": 1})
    assert lab.run(path).exit_code == 1
    (hash,) = lab.states()
    assert lab.folder.trial(hash).status().failure == "killed"
    monkeypatch.undo()


def test_a_pruner_survives_rows_that_a_resume_has_cut(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial is killed with rows past its checkpoint, longer ones than it writes again."""
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.1")
    pruner = {"name": "median", "options": {"n_startup_trials": 100}}
    path = lab.sweep(space={"seed": [0]}, pruner=pruner, function=f"{HERE}:resumes_shorter")
    assert lab.run(path).exit_code == 0
    assert study_states(lab) == ["COMPLETE"]


@pytest.mark.parametrize("moment", ["before the plan", "after the plan", "after the bind"])
def test_a_search_loses_no_point_to_a_crash_while_proposing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = lab.sweep(
        space={"optim.lr": {"log": [1e-4, 1e-1]}}, sampler={"name": "random"}, trials=6
    )
    with monkeypatch.context() as patch:
        patch.setattr(*CRASHES[moment]())
        with pytest.raises(Crash):
            lab.run(path)
    outcome = lab.run(path)
    assert (outcome.done, len(lab.states()), outcome.exit_code) == (6, 6, 0)
    assert study_states(lab).count("COMPLETE") == 6
    assert "RUNNING" not in study_states(lab)


@pytest.mark.parametrize("how", ["moved", "deleted"])
def test_a_folder_that_vanishes_ends_with_a_line(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """And the trials end with it; moved back, the sweep goes on where it was."""
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.3")
    path = lab.sweep(space={"seed": [0, 1, 2]}, **CHAIN)
    aside = lab.path / "aside"
    began: list[float] = []
    pids: list[int] = []

    def vanish(self: object) -> None:
        if trial_pids(lab) and not began:
            pids.extend(trial_pids(lab))
            lab.folder.path.rename(aside)
            began.append(time.time())

    with monkeypatch.context() as patch:
        patch.setattr("attnres_lab.sweep.view.Screen.tick", vanish)
        with pytest.raises(UserError, match=r"runs/sweeps/s: was moved, .*put it back"):
            lab.run(path)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    if how == "moved":
        assert not lab.folder.path.exists() or not list(lab.folder.path.rglob("result.json"))
        if lab.folder.path.exists():
            lab.folder.path.rename(lab.path / "leftover")
        aside.rename(lab.folder.path)
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.01")
    assert lab.run(path).exit_code == 0
    check_exact(lab)


DAMAGED_JOURNALS = {
    "a line in the middle": lambda lines: [*lines[:4], b"{garbage\n", *lines[5:]],
    "a list for a mapping": lambda lines: [*lines[:4], b"[1]\n", *lines[5:]],
    "the first line": lambda lines: [b"\x00\xff\n", *lines[1:]],
    "cut": lambda lines: [*lines[:-2], lines[-2][:9]],
    "empty": lambda lines: [],
}


@pytest.mark.parametrize("how", DAMAGED_JOURNALS)
def test_a_damaged_journal_costs_nothing(lab: Lab, how: str, capsys) -> None:
    """It is set aside in a line, and what it held is told again from the folders."""
    path = lab.sweep()
    assert lab.run(path).exit_code == 0
    lines = lab.folder.journal.read_bytes().splitlines(keepends=True)
    lab.folder.journal.write_bytes(b"".join(DAMAGED_JOURNALS[how](lines)))
    capsys.readouterr()
    assert lab.run(path).exit_code == 0
    assert sorted(study_states(lab)) == ["COMPLETE", "COMPLETE"]
    aside = list(lab.folder.path.glob("study.journal.damaged-1"))
    assert len(aside) == (how not in ("cut", "empty"))
    assert capsys.readouterr().err.count("study.journal: damaged; set aside") == len(aside)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"cpu": []}', '{"cpu": {"k": 1}}', '{"cpu": {"k": {"speed": "fast"}}}'],
)
def test_a_damaged_cache_of_speeds_is_a_cache_that_is_empty(
    lab: Lab, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And learns again."""
    from attnres_lab.sweep.pricing import Device, Speeds

    monkeypatch.setenv("ATTNRES_CACHE", str(lab.path))
    (lab.path / "speed.json").write_text(text)
    speeds = Speeds(Device("cpu", "cpu", 1e9, 1))
    assert not speeds.known
    speeds.learn([])


HERE = "tests.sweep.test_failures"


class Crash(BaseException):
    """What no handler catches."""


def _crash_before(method):
    """``method``, its third call a crash; then what it would have done is undone."""
    calls: list[int] = []

    def crashing(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise Crash
        return method(*args, **options)

    return crashing


def _crash_after_bind():
    method, calls = OptunaStudy.bind, []

    def crashing(*args, **options):
        method(*args, **options)
        calls.append(1)
        if len(calls) == 3:
            raise Crash

    return "attnres_lab.sweep.optuna_study.OptunaStudy.bind", crashing


def _crash_before_plan():
    from attnres_lab.runs.sweep import SweepFolder

    return (
        "attnres_lab.runs.sweep.SweepFolder.write_plan",
        _crash_before(SweepFolder.write_plan),
    )


CRASHES = {
    "before the plan": _crash_before_plan,
    "after the plan": lambda: (
        "attnres_lab.sweep.optuna_study.OptunaStudy.bind",
        _crash_before(OptunaStudy.bind),
    ),
    "after the bind": _crash_after_bind,
}


def sleeps(config, folder: Path) -> dict[str, float]:
    time.sleep(2.5)
    return {"val/loss": 1.0}


def says_nothing(config, folder: Path) -> dict[str, float]:
    return {"other": 1.0}


def says_text(config, folder: Path) -> dict[str, object]:
    return {"val/loss": "low" if config.seed else 1.0, "seconds": "few", "flops": "many"}


def resumes_shorter(config, folder: Path) -> dict[str, float]:
    """The first attempt logs long rows and is killed; the second cuts them and logs short ones."""
    from attnres_lab.runs.folder import RunFolder

    run = RunFolder(folder)
    first = not run.metrics.exists()
    run.truncate_metrics(0)
    for step in range(1, 4 if first else 100):  # more bytes than it had, before the next look
        text = "x" * (333 if first else step)
        run.append_metrics({"step": step, "val/loss": 1.0, "text": text})  # type: ignore[dict-item]
        time.sleep(0.25 if first else 0.0)
    time.sleep(0.5)
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    assert json.loads(run.metrics.read_text().splitlines()[0])["text"] == "x"
    return {"val/loss": 1.0}
