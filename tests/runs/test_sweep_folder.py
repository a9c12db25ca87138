"""A sweep's folder tells what was planned and who runs it, to everybody who may look."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from filelock import FileLock

from attnres_lab.errors import UserError
from attnres_lab.runs import Entry, SweepFolder
from attnres_lab.runs.files import write_json


def entry(hash: str) -> Entry:
    return Entry(hash, hash, {"seed": 0}, "full", "d32-L8", 0, f"full-{hash}", 1000, 1e9, 4000)


PLAN = [entry("a1"), entry("b2"), entry("c3")]


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    sweep = SweepFolder(tmp_path / "demo")
    sweep.path.mkdir()
    sweep.write_plan(PLAN)
    return sweep


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda data: data[:-40], PLAN[:2]),
        (lambda data: data.replace(b'"b2", "point"', b'"b2", "pint"'), [PLAN[0], PLAN[2]]),
        (lambda data: data.replace(b'"hash": "b2"', b"}{"), [PLAN[0], PLAN[2]]),
        (lambda _: b"", []),
        (lambda _: b"\x00" * 99, []),
        (lambda _: b"{}", []),
    ],
)
def test_a_damaged_plan_costs_the_trials_that_cannot_be_read(folder, damage, left, capsys) -> None:
    path = folder.path / "plan.json"
    path.write_bytes(damage(path.read_bytes()))
    assert folder.plan() == left
    assert "plan.json: damaged; set aside as plan.json.damaged-1" in capsys.readouterr().err
    assert folder.plan() == left


@pytest.mark.parametrize("hash", ["/etc", "../../x", "..", "a/b", ""])
def test_a_hash_that_leads_out_of_the_folder_is_no_trial(folder, hash, capsys) -> None:
    rows = [asdict(entry) for entry in PLAN]
    (folder.path / "plan.json").write_text(json.dumps([*rows, rows[0] | {"hash": hash}]))
    assert folder.plan() == PLAN
    assert "plan.json: damaged" in capsys.readouterr().err


def test_a_request_to_stop_that_comes_as_soon_as_the_holder_is_known_is_kept(
    folder, monkeypatch
) -> None:
    def announced(path, value) -> None:
        write_json(path, value)
        folder.stop.touch()

    folder.stop.touch()  # of an earlier coordinator, which ended before it heard
    with folder.coordinate():
        assert not folder.stop.exists()
    monkeypatch.setattr("attnres_lab.runs.sweep.write_json", announced)
    with folder.coordinate():
        assert folder.stop.exists()


def test_a_damaged_description_is_set_aside(folder, capsys) -> None:
    (folder.path / "sweep.json").write_text("[1]")
    assert folder.facts() == {}
    assert "sweep.json: damaged" in capsys.readouterr().err
    folder.describe("demo", "base.yaml", "name: demo")
    assert folder.facts()["name"] == "demo"


def test_the_holder_is_told_while_it_holds_and_by_nobodys_lock(folder) -> None:
    assert folder.holder() is None
    with folder.coordinate():
        holder = folder.holder()
        assert holder is not None
        assert holder["pid"] == os.getpid()
        with pytest.raises(UserError, match="held by process"), folder.coordinate():
            pass
    assert folder.holder() is None
    with FileLock(folder.path / "coordinator.lock"):  # as while a coordinator starts
        assert folder.holder() is None


def test_a_killed_coordinator_holds_nothing(folder) -> None:
    code = (
        "import sys, time, pathlib; from attnres_lab.runs import SweepFolder\n"
        f"with SweepFolder(pathlib.Path({str(folder.path)!r})).coordinate():\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert (folder.holder() or {})["pid"] == process.pid
        process.kill()
    assert folder.holder() is None
    with folder.coordinate():
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what became of a process")
def test_temporary_files_of_the_dead_are_swept_up_and_no_others(folder) -> None:
    """In the folders of trials too, whether they run again or not: of a writer that was killed and
    whose end nobody has asked for yet, and of one whose process id is another's since.
    """
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    killed.kill()
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a process
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        trial = folder.trials / "a1"
        (trial / "checkpoints").mkdir(parents=True)
        dead = trial / f".result.json.{killed.pid}.tmp"
        again = trial / "checkpoints" / f".last.ckpt.{living.pid}.tmp"
        kept = [trial / f".status.json.{living.pid}.tmp", trial / ".of.somebody.tmp"]
        running = folder.trials / "b2" / f".result.json.{killed.pid}.tmp"
        running.parent.mkdir()
        for path in (dead, again, running, *kept):
            path.touch()
        os.utime(again, (0, time.time() - 3600))
        with FileLock(running.with_name("lock")), folder.coordinate():
            assert sorted(folder.trials.rglob(".*.tmp")) == sorted([*kept, running])
        living.communicate(b"\n")
    killed.communicate()


def test_a_holder_of_another_machine_is_known_by_its_heartbeat(folder) -> None:
    about = {"pid": 1, "host": "elsewhere", "started": 0.0}
    (folder.path / "coordinator.json").write_text(json.dumps(about))
    assert folder.holder() is None
    beat = folder.path / "coordinator.heartbeat"
    beat.touch()
    assert folder.holder() == about
    os.utime(beat, (0, time.time() - 100))
    assert folder.holder() is None


def test_a_process_id_that_was_given_again_is_not_the_holder(folder) -> None:
    about = {"pid": os.getpid(), "host": socket.gethostname(), "born": 1, "started": 0.0}
    (folder.path / "coordinator.json").write_text(json.dumps(about))
    assert folder.holder() is None


def test_a_user_who_may_only_look_sees_the_truth(folder, tmp_path, capsys) -> None:
    """Run as another user where this one is root, to whom every folder is writable."""
    folder.trial("a1").path.mkdir(parents=True)
    folder.trial("a1").set_status("finished", step=3)
    (folder.trial("b2").path).mkdir()
    (folder.trial("b2").path / "status.json").write_text("{")
    code = (
        "import os, sys, pathlib\n"
        "from attnres_lab.runs import SweepFolder\n"
        "os.getuid() or os.setuid(65534)\n"
        f"sweep = SweepFolder(pathlib.Path({str(folder.path)!r}))\n"
        "print(sweep.holder()['pid'], [sweep.trial(e.hash).status().state for e in sweep.plan()])\n"
        "try:\n"
        "    with sweep.coordinate(): pass\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    for path in (folder.path, *folder.path.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.name.startswith(("pytest", "popen", "test_")):
            parent.chmod(0o755)
    try:
        folder.path.chmod(0o755)
        with folder.coordinate():
            for path in folder.path.glob("coordinator.*"):
                path.chmod(0o444)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    finally:
        for path in folder.path.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert done.stdout == (f"{os.getpid()} ['finished', 'scheduled', 'scheduled']\nUserError\n"), (
        done.stderr
    )
    assert done.stderr.count("\n") == 1
