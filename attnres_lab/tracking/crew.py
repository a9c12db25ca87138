"""Several processes that send runs to the store, each run by one of them: what a run costs is
Python's time, not the store's.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from filelock import Timeout

from attnres_lab.errors import UserError
from attnres_lab.tracking import sqlite
from attnres_lab.tracking.artifacts import mirroring, scratch
from attnres_lab.tracking.run import Identity, RunSync
from attnres_lab.tracking.single import single
from attnres_lab.tracking.store import Store, connect, file_of, tracking_uri

WORTH = 60  # runs for which a process more is worth the seconds that it imports
MOST = 8  # processes: SQLite takes one writer at a time
#: What a folder raises that cannot be read, whatever the store does.
UNREADABLE = (ValueError, KeyError, TypeError, UserError)


@dataclass(frozen=True)
class Errand:
    """A run to send: one of the sweep in ``home``, whose mirroring the caller holds and of which
    the store knows it by ``run_id`` (None: not at all), or, without ``identity``, ``folder`` alone.
    """

    folder: Path
    home: Path | None = None
    identity: Identity | None = None
    run_id: str | None = None


def send(errands: Sequence[Errand]) -> Iterator[bool]:
    """Whether each was sent whole, in their order. What was not, for a folder that cannot be read,
    a store that is away or a process that was killed, is the caller's to send: none of it is lost
    or half done, and it is the caller that says what is wrong.
    """
    processes = min(cores(), MOST, len(errands) // WORTH)
    if processes < 2:
        yield from [False] * len(errands)
        return
    # forked from this process they would share its connections
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _begin)
    left = len(errands)
    try:
        for sent in pool.map(_send, errands):
            if sent is None:
                break
            left -= 1
            yield sent
    except BrokenProcessPool:
        pass
    finally:
        pool.shutdown(cancel_futures=True)
    yield from [False] * left


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_store: Store | None = None  # of this process


def _begin() -> None:
    """In each process: Ctrl-C is for the one that started it, which ends it, and whose lock on the
    folders is gone with it.
    """
    global _store
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    with suppress(Exception):  # who started it is told by its own calls
        _store = connect()
        if path := file_of(tracking_uri()):
            sqlite.hurry(path)
    gc.freeze()  # the modules, which it would walk through again and again


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _send(errand: Errand) -> bool | None:
    """Whether it was sent; None where the store is at fault, so that no more need be tried."""
    if _store is None:
        return None
    if errand.home:
        tempfile.tempdir = str(scratch(errand.home))
    try:
        alone = errand.identity is None
        with mirroring(errand.folder, wait=False) if alone else nullcontext():
            if errand.identity is None:
                run = single(_store, errand.folder)
            else:
                run = RunSync(_store, errand.folder, errand.identity, errand.run_id)
            run.sync()
            run.sync_artifacts()
    except (*UNREADABLE, Timeout):  # running, and so mirrored by its own process
        return False
    except Exception:
        return None
    return True
