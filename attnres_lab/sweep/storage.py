"""Where Optuna keeps its record: a journal file, or a database that several machines share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from attnres_lab.errors import UserError
from attnres_lab.runs.secrets import redact


class Database:
    """An Optuna storage whose server may restart: every call is tried again for five minutes;
    trials go on meanwhile.
    """

    def __init__(self, url: str, say: Callable[[str], None]) -> None:
        self._say = say
        self._storage = self._try(lambda: _open(url))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._storage, name)
        return lambda *args, **options: self._try(lambda: method(*args, **options))

    def _try(self, call: Callable[[], Any]) -> Any:
        from sqlalchemy.exc import SQLAlchemyError

        for attempt in range(60):
            try:
                return call()
            except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                if attempt == 0:
                    reason = redact(str(error).splitlines()[0])
                    self._say(f"storage: {reason}; trying again for five minutes")
                time.sleep(0.2 if attempt < 5 else 5.0)
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
    """The journal file of one sweep; after a crash without a half-written last line and without the
    lock of the dead. The caller holds the sweep.
    """
    Path(f"{path}.lock").unlink(missing_ok=True)
    if path.exists():
        with open(path, "r+b") as file:
            data = file.read()
            if not data.endswith(b"\n"):
                file.truncate(data.rfind(b"\n") + 1)
                os.fsync(file.fileno())
    return JournalStorage(JournalFileBackend(str(path)))
