"""Where Optuna keeps its record: a journal file, or a database that several machines share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from attnres_lab.errors import UserError
from attnres_lab.runs.files import set_aside, write_atomic
from attnres_lab.runs.secrets import redact


class Database:
    """An Optuna storage whose server may restart: every call is tried again for five minutes;
    trials go on meanwhile. One that cannot be opened is refused within seconds, before any starts.
    Raises UserError.
    """

    def __init__(self, url: str, say: Callable[[str], None]) -> None:
        self._say = say
        self._storage = self._try(lambda: _open(url), opening=True)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._storage, name)
        return lambda *args, **options: self._try(lambda: method(*args, **options))

    def _try(self, call: Callable[[], Any], *, opening: bool = False) -> Any:
        from sqlalchemy.exc import SQLAlchemyError

        reason = ""
        for attempt in range(10 if opening else 60):
            try:
                return call()
            except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                reason = redact(str(error).splitlines()[0])
                if attempt == 0 and not opening:
                    self._say(f"storage: {reason}; trying again for five minutes")
                time.sleep(0.2 if attempt < 5 else 1.0 if opening else 5.0)
        if opening:
            raise UserError(
                f"storage: {reason}; no study can be opened there: start the database or mend the "
                "address, then run the sweep again"
            )
        raise UserError(
            "storage: the database did not come back within five minutes; the trials' folders are "
            "complete, run the sweep again later"
        )


def _open(url: str) -> Any:
    # the driver that the extra installs
    url = url.replace("postgresql://", "postgresql+psycopg2://")
    try:
        return optuna.storages.get_storage(RDBStorage(url, engine_kwargs={"pool_pre_ping": True}))
    except ImportError as error:
        raise UserError(
            f"storage: {url.split(':')[0]} needs a driver ({error}); for PostgreSQL: pip install "
            "attnres-lab[postgres]"
        ) from None


def open_journal(path: Path) -> JournalStorage:
    """The journal file of one sweep. After a crash it is read up to its last whole line, a damaged
    one up to the damage: it is set aside, and what it no longer says is told again from the
    folders. The caller holds the sweep.
    """
    if path.exists():
        data = path.read_bytes()
        whole = _whole(data)
        if b"\n" in data[len(whole) :]:  # more than a line that was cut by a crash
            set_aside(path, data)
            write_atomic(path, whole)
        elif whole != data:
            write_atomic(path, whole)
    try:
        storage = JournalStorage(JournalFileBackend(str(path), _NoLock()))
        storage.get_all_studies()
        return storage
    except Exception:  # whole lines that do not fit together: Optuna raises what they lead to
        set_aside(path, path.read_bytes())
        return JournalStorage(JournalFileBackend(str(path), _NoLock()))


def _whole(data: bytes) -> bytes:
    """The lines before the first that is none of a journal."""
    end = 0
    for line in data.splitlines(keepends=True):
        try:
            fits = line.endswith(b"\n") and isinstance(json.loads(line)["op_code"], int)
        except (ValueError, KeyError, TypeError, RecursionError):
            fits = False
        if not fits:
            break
        end += len(line)
    return data[:end]


class _NoLock:
    """None: who holds the sweep is alone. Optuna's own leaves files behind when it is killed."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass
