"""Which MLflow store, and how it is opened: once created, under a lock, with errors that say what
to do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from attnres_lab.errors import UserError
from attnres_lab.runs.paths import artifacts_folder, runs_folder
from attnres_lab.runs.secrets import check_address, redact
from attnres_lab.tracking import sqlite
from attnres_lab.tracking.view import TAG, view

LONGEST = 480  # bytes of the runs' path: SQLite takes 512 with its journal's name
_LOCK_KEY = 7_142_853  # of the advisory lock in PostgreSQL: any fixed number


@dataclass(frozen=True)
class Store:
    """An open store: ``client`` is an ``mlflow.MlflowClient``, ``label`` the address without
    secrets.
    """

    client: Any
    experiment_id: str
    label: str


def tracking_uri() -> str:
    """``$MLFLOW_TRACKING_URI``, else the embedded store ``mlflow.db`` in the folder of the runs.
    Raises UserError for what is no address of a store.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        if urlsplit(uri).scheme in ("", "file"):
            raise UserError(
                f"MLFLOW_TRACKING_URI: {redact(uri)}: MLflow no longer writes to folders; use "
                "sqlite:////path/mlflow.db or a server"
            )
        check_address("MLFLOW_TRACKING_URI", uri, server=True)
        return uri
    if bad := re.search(r"\?|%[\da-fA-F]{2}", str(runs_folder())):  # SQLAlchemy reads them
        raise UserError(
            f"{runs_folder()}: a store cannot lie in a folder with '{bad[0]}' in its name"
        )
    if len(os.fsencode(runs_folder())) > LONGEST:
        raise UserError(
            f"{runs_folder()}: SQLite takes no path of this length; set ATTNRES_RUNS to a folder "
            f"of at most {LONGEST} bytes, or MLFLOW_TRACKING_URI to a store elsewhere"
        )
    return f"sqlite:///{runs_folder() / 'mlflow.db'}"


def experiment_name() -> str:
    """``$MLFLOW_EXPERIMENT_NAME``, else ``attnres``."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "attnres"


def left_behind(folder: Path) -> None:
    """Say where the rest is."""
    print(
        f"tracking: {redact(tracking_uri())} did not take everything in time; nothing is lost: it "
        f"is in {folder} and is sent by the next run there "
        f"or by: attnres track rebuild {folder}",
        file=sys.stderr,
    )


def reason(error: BaseException) -> str:
    """What went wrong in a line, without secrets: the words of the error around which MLflow,
    SQLAlchemy and the database each wrapped their own.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    words = str(error).splitlines()[:1] or [""]
    said = re.sub(r"^\([\w.]+\) ", "", words[0])
    return redact(f"{type(error).__name__}: {said}" if said else type(error).__name__)[:300]


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Turns what a store or its disk raises into a UserError of one line."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(
            f"{redact(tracking_uri())}: cannot be written ({reason(error)}); nothing is lost, it "
            "is in the run folders: mend this, then run it again"
        ) from error


def is_server(uri: str) -> bool:
    """Whether ``uri`` is a tracking server, which has a user interface of its own, and not a
    database.
    """
    return urlsplit(uri).scheme in ("http", "https")


def connect(*, thorough: bool = False, rebuilding: bool = False) -> Store:
    """Open the store and its experiment, creating both when they are not there. A damaged store of
    the embedded kind is set aside, ``thorough``: after every page of it was looked at; the line
    that says so names the remedy, unless the caller is ``rebuilding``. Raises UserError for a store
    of another MLflow version.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # it prints the traceback of what it raises
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    uri = tracking_uri()
    with lock(uri):
        if path := file_of(uri):
            provide(path, thorough=thorough, rebuilding=rebuilding)
        try:
            client, found = _open(uri)
        except Exception as error:
            if path and not sqlite.has_runs(path) and not _away(error):
                sqlite.set_aside(path, "its schema is incomplete", rebuilding=rebuilding)
                provide(path)
                client, found = _open(uri)
            elif "database schema" in str(error):
                raise UserError(
                    f"{redact(uri)}: the store was made by another version of MLflow "
                    f"({mlflow.__version__} is installed); "
                    f"make a backup, then run: mlflow db upgrade '{redact(uri)}'"
                ) from None
            else:
                raise
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        if found.tags.get(TAG) != view():
            client.set_experiment_tag(found.experiment_id, TAG, view())
    return Store(client, found.experiment_id, redact(uri))


def provide(path: Path, *, thorough: bool = False, rebuilding: bool = False) -> None:
    """Have a database that can be read at ``path``; the caller holds its lock. Raises UserError for
    one of something else that the user named.
    """
    sqlite.forget(path)
    there = path.exists() and path.stat().st_size > 0
    reason = sqlite.damage(path, thorough=thorough) if there else ""
    if there and not reason and sqlite.foreign(path):
        if "MLFLOW_TRACKING_URI" in os.environ:
            raise UserError(
                f"MLFLOW_TRACKING_URI: {path} is a database of something else; give MLflow one of "
                "its own"
            )
        reason = "it is a database of something else"
    if reason:
        sqlite.set_aside(path, reason, rebuilding=rebuilding)
        there = False
    if not there:
        sqlite.create(path, artifacts_folder().as_uri())


def file_of(uri: str) -> Path | None:
    """The file of an embedded store; None for another kind."""
    name = uri.partition("?")[0].removeprefix("sqlite:///")
    return Path(name) if name and uri.startswith("sqlite:///") else None


def _open(uri: str) -> tuple[Any, Any]:
    """A client, and the experiment, made where it is not there."""
    import mlflow
    from mlflow.exceptions import MlflowException

    client, name = mlflow.MlflowClient(uri), experiment_name()
    if (found := client.get_experiment_by_name(name)) is None:
        location = None if is_server(uri) else artifacts_folder().as_uri()
        # another process on another machine was first
        with contextlib.suppress(MlflowException):
            client.create_experiment(
                name, location, {"mlflow.experimentKind": "custom_model_development"}
            )
        found = client.get_experiment_by_name(name)
    return client, found


def _away(error: Exception) -> bool:
    """Whether it is the disk or another process that keeps the store from being opened."""
    words = ("locked", "disk", "readonly", "unable to open")
    return any(word in str(error) for word in words)


@contextlib.contextmanager
def lock(uri: str) -> Iterator[None]:
    """One process at a time creates the schema: a file lock, in PostgreSQL an advisory lock, which
    holds between machines as well.
    """
    parts = urlsplit(uri)
    if is_server(uri):
        yield
    elif parts.scheme.startswith("postgresql"):
        import sqlalchemy

        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({_LOCK_KEY})"))
            yield
    else:
        path = file_of(uri) or Path(tempfile.gettempdir()) / "attnres-lab-store"
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            yield
