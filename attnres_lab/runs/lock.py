"""One process at a time in a run folder, and a sign that it lives."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder


@contextmanager
def only_one(files: RunFolder) -> Iterator[None]:
    """Hold the folder's lock; ranks of one run share their parent's."""
    if "LOCAL_RANK" in os.environ or os.environ.get("ATTNRES_LOCKED") == str(files.path):
        yield
        return
    try:
        with FileLock(files.path / "lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"{files.path}: another process is training in this folder") from None


@contextmanager
def heartbeat(files: RunFolder) -> Iterator[None]:
    """Touch the folder's heartbeat once a second."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.is_set():
            files.beat()
            ended.wait(1.0)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
