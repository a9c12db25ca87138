"""The embedded store as a file: made aside and moved in whole; a damaged one is set aside."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

#: What follows a database's name in the names of its journals: theirs is another's once it is gone.
COMPANIONS = ("-journal", "-wal", "-shm")


def create(path: Path, artifacts: str) -> None:
    """Make an empty store at ``path``. MLflow writes its schema in some seventy steps, so that a
    kill in between would leave half of one. The caller holds the store's lock.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(f".{path.name}.new")
    for leftover in path.parent.glob(f"{new.name}*"):
        leftover.unlink()
    store = SqlAlchemyStore(f"sqlite:///{new}", artifacts)
    store.engine.dispose()
    SqlAlchemyStore._engine_map.pop(f"sqlite:///{new}", None)
    with open(new, "rb+") as file:
        os.fsync(file.fileno())
    for companion in COMPANIONS:  # of a store that was deleted: SQLite would take it for this one's
        Path(f"{path}{companion}").unlink(missing_ok=True)
    os.replace(new, path)


def damage(path: Path, *, thorough: bool = False) -> str:
    """Why the file cannot be read as a database; empty for one that can, and for one that is
    locked or on a disk that fails. ``thorough`` reads all of it.
    """
    try:
        with closing(_open(path)) as database:
            database.execute("BEGIN")
            database.execute("SELECT name FROM sqlite_master").fetchall()
            (pages,) = database.execute("PRAGMA page_count").fetchone()
            (size,) = database.execute("PRAGMA page_size").fetchone()
            (mode,) = database.execute("PRAGMA journal_mode").fetchone()
            if mode != "wal" and pages * size > path.stat().st_size:
                return f"{path.stat().st_size} of {pages * size} bytes"
            (found,) = database.execute(
                "PRAGMA quick_check(1)" if thorough else "SELECT 'ok'"
            ).fetchone()
            return "" if found == "ok" else str(found).splitlines()[0]
    except sqlite3.OperationalError:
        return ""
    except sqlite3.DatabaseError as error:
        return str(error)


def foreign(path: Path) -> bool:
    """Whether it is a database of something else; not where that cannot be told."""
    try:
        with closing(_open(path)) as database:
            query = "SELECT name FROM sqlite_master WHERE type = 'table'"
            names = {name for (name,) in database.execute(query)}
    except sqlite3.Error:
        return False
    return bool(names) and not names & {"experiments", "runs"}


def has_runs(path: Path) -> bool:
    """Whether the store holds a run; also where that cannot be told."""
    try:
        with closing(_open(path)) as database:
            named = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchone()
            return bool(named and database.execute("SELECT 1 FROM runs LIMIT 1").fetchone())
    except sqlite3.Error:
        return True


def holds(path: Path, experiment: str, tags: Mapping[str, str]) -> bool:
    """Whether a run of the experiment has all these tags; not where that cannot be told. MLflow's
    own answer takes the seconds that it is imported.
    """
    query = (
        "SELECT count(*) FROM tags JOIN runs USING (run_uuid) JOIN experiments USING "
        "(experiment_id) WHERE experiments.name = ? AND runs.lifecycle_stage = 'active' AND ("
        + " OR ".join(["tags.key = ? AND tags.value = ?"] * len(tags))
        + ") GROUP BY run_uuid ORDER BY count(*) DESC LIMIT 1"
    )
    words = [experiment, *(word for item in tags.items() for word in item)]
    try:
        with closing(_open(path)) as database:
            return bool(database.execute(query, words).fetchone() == (len(tags),))
    except sqlite3.Error:
        return False


def set_aside(path: Path, reason: str, *, rebuilding: bool = False) -> None:
    """Rename a store that is of no use, and say so in a line, with the remedy but to the command
    that is the remedy.
    """
    n = 1
    while (aside := path.with_name(f"{path.name}.damaged-{n}")).exists():
        n += 1
    for companion in ("", *COMPANIONS):
        if (file := Path(f"{path}{companion}")).exists():
            file.rename(f"{aside}{companion}")
    remedy = "" if rebuilding else "; write what was in it again with: attnres track rebuild"
    print(
        f"tracking: {path}: damaged ({reason}); set aside as {aside.name}, and a new store takes "
        f"its place{remedy}",
        file=sys.stderr,
        flush=True,
    )


def forget(path: Path) -> None:
    """Close what this process has open of the store: the file may be another one by now."""
    if engine := _engine(path):
        engine.dispose()


_hurried: dict[Path, Any] = {}  # of this process, with their engines


def hurry(path: Path) -> None:
    """Let this process commit to the open store at ``path`` without waiting for the disk, some
    sixty times a run, until ``calm``. A killed process loses nothing by it; a power cut may damage
    the store, as which the next rebuild knows it.
    """
    from sqlalchemy import event

    if engine := _engine(path):
        event.listen(engine, "connect", _do_not_wait)
        engine.dispose()  # new connections: the setting is theirs
        _hurried[path] = engine


def settle() -> None:
    """Bring to the disk what was committed in a hurry: before anything is remembered as sent. No
    connection of this process may be in the middle of a transaction. Raises OSError.
    """
    for path in _hurried:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def calm() -> None:
    """The end of all hurry."""
    from sqlalchemy import event

    try:
        settle()
    finally:
        for engine in _hurried.values():
            event.remove(engine, "connect", _do_not_wait)
            engine.dispose()
        _hurried.clear()


def _do_not_wait(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")


def _engine(path: Path) -> Any:
    """MLflow's engine of the store, if this process opened it."""
    mlflow = sys.modules.get("mlflow.store.tracking.sqlalchemy_store")
    return mlflow.SqlAlchemyStore._engine_map.get(f"sqlite:///{path}") if mlflow else None


def _open(path: Path) -> sqlite3.Connection:
    """Writable, as the rest of a killed writer has to be rolled back before anything is read."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=20)
