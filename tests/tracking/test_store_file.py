"""The embedded store survives what happens to its file, and to those who make it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from tracking_helpers import OLD_LOADER, dump, write_run, write_sweep

from attnres_lab.errors import UserError
from attnres_lab.tracking import connect, rebuild, tracking_uri
from attnres_lab.tracking.server import serve
from tests.faults.stores import DAMAGES

pytestmark = pytest.mark.filterwarnings(OLD_LOADER)


def connect_in_child(started) -> None:
    """Open the store in a process of its own, that can be killed."""
    started.set()
    connect()
    os._exit(0)


def child() -> multiprocessing.Process:
    """A process that has begun to open the store."""
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=connect_in_child, args=(started,))
    process.start()
    started.wait()
    return process


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """A folder of runs without a store, with a sweep of four trials and a run."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    write_sweep(tmp_path / "sweeps" / "quick")
    write_run(tmp_path / "train" / "tiny", variant="block8")
    return tmp_path


@pytest.mark.slow
def test_a_kill_while_the_store_is_made_leaves_none_or_a_whole_one(empty, capfd) -> None:
    """At eight moments from the start to beyond the end of its creation; then the next opening
    works, and a rebuild gives the full table.
    """
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  # a child need not wait for it

    began = time.monotonic()
    child().join()
    whole = time.monotonic() - began
    for moment in range(8):
        for file in empty.glob("*mlflow.db*"):
            file.unlink()
        process = child()
        time.sleep(1.1 * whole * moment / 7)
        process.kill()
        process.join()
        if (empty / "mlflow.db").exists():
            with contextlib.closing(sqlite3.connect(empty / "mlflow.db")) as database:
                assert database.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        following = child()
        following.join()
        assert following.exitcode == 0
    assert not list(empty.glob(".mlflow.db*"))
    list(rebuild(empty))
    assert len(dump(tracking_uri())) == 6
    assert "damaged" not in capfd.readouterr().err


def test_the_last_moment_before_the_store_is_moved_in(empty, monkeypatch) -> None:
    """Killed when all is written aside: no store, and nothing of it is left after the next
    opening.
    """
    with monkeypatch.context() as patch:
        patch.setattr(
            "attnres_lab.tracking.sqlite.os.replace",
            lambda *_: os.kill(os.getpid(), signal.SIGKILL),
        )
        process = child()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (empty / "mlflow.db").exists()
    assert (empty / ".mlflow.db.new").exists()
    (empty / "mlflow.db-journal").write_bytes(b"of a store that was deleted")
    assert len(list(rebuild(empty))) == 2
    assert len(dump(tracking_uri())) == 6
    assert sorted(p.name for p in empty.glob("*mlflow.db*")) == ["mlflow.db", "mlflow.db.lock"]


def half_made(path: Path) -> None:
    """What a kill in the middle of MLflow's own creation leaves."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM alembic_version")
        for table in ("logged_models", "inputs"):
            database.execute(f"DROP TABLE {table}")


WAYS = DAMAGES | {"an old schema": half_made}
SLOW = ("garbage", "empty", "gone")


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[pytest.mark.slow] * (how in SLOW)) for how in WAYS]
)
def test_a_damaged_store_is_set_aside_and_written_again(runs, capsys, how) -> None:
    """In one line, by a process that has it open too; the full table is there afterwards."""
    for name in ("a", "b"):
        write_run(runs / "train" / name, variant=name)
    if how != "an old schema":  # one with runs in it was whole once
        list(rebuild(runs / "train" / "a"))
    capsys.readouterr()
    WAYS[how](runs / "mlflow.db")
    list(rebuild(runs))
    assert [run["status"] for run in dump(tracking_uri()).values()] == ["FINISHED"] * 2
    said = capsys.readouterr().err
    lost = how in ("empty", "gone")  # nothing to set aside
    assert len(list(runs.glob("mlflow.db.damaged-1"))) == (not lost)
    assert said.count("set aside as mlflow.db.damaged-1") == said.count("\n") == (not lost)
    assert "attnres track rebuild" not in said  # which this is


def test_a_store_that_is_locked_is_no_damaged_one(runs, capsys) -> None:
    """Another process writes to it just now, or it is of another user: it stays where it is."""
    from attnres_lab.tracking.sqlite import damage

    with contextlib.closing(sqlite3.connect(runs / "mlflow.db")) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "attnres_lab.tracking.sqlite._open",
                lambda path: sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=0.1),
            )
            assert damage(runs / "mlflow.db") == ""
    assert damage(runs / "mlflow.db", thorough=True) == ""


def test_what_a_killed_upload_left_is_removed(runs) -> None:
    """MLflow writes a file under another name and moves it in when it is whole; temporary files of
    a mirror lie in the folder that it mirrors.
    """
    home = write_run(runs / "train" / "a").path
    list(rebuild(runs))
    (uploaded,) = (runs / "artifacts").rglob("config.yaml")
    left = [
        uploaded.with_name(".artifact.uploading.abc"),
        home / ".tracking.tmp" / "tmpxyz" / "log.txt",
        home / ".tracking.json.999999999.tmp",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    list(rebuild(runs))
    assert [path for path in left if path.exists()] == []
    assert uploaded.exists()
    assert not (home / ".tracking.tmp").exists()


def test_the_pages_open_on_a_damaged_store(runs, capsys, monkeypatch) -> None:
    """``attnres ui`` names it before it starts a server on the new one."""
    WAYS["half"](runs / "mlflow.db")
    monkeypatch.setattr("attnres_lab.tracking.server._taken", lambda port: True)
    monkeypatch.setattr("attnres_lab.tracking.server.signal.signal", lambda *_: None)
    with pytest.raises(UserError, match="is in use"):
        serve(5000)
    said = capsys.readouterr().err
    assert "set aside as mlflow.db.damaged-1" in said
    assert "write what was in it again with: attnres track rebuild" in said
    assert connect().client.search_runs([connect().experiment_id]) == []
