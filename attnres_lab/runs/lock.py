"""One process at a time in a run folder, and a sign that it lives."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder

BEAT = 1.0  # seconds
SLACK = 2.0  # seconds that the clock of a disk may be off


@contextmanager
def only_one(files: RunFolder) -> Iterator[None]:
    """Hold the folder and its lock; ranks of one run share their parent's lock."""
    files.hold()
    if "LOCAL_RANK" in os.environ or os.environ.get("ATTNRES_LOCKED") == str(files.path):
        yield
        return
    try:
        with FileLock(files.path / "lock", timeout=0):
            tidy(files)
            yield
    except Timeout:
        raise UserError(f"{files.path}: another process is training in this folder") from None


@contextmanager
def mendable(files: RunFolder) -> Iterator[None]:
    """What the disk raises as a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT and error.filename == str(files.path):
            why = "was moved, deleted or unmounted while it was in use; put it back and run again"
            raise UserError(f"{files.path}: {why}") from error
        raise UserError(
            f"{error.filename or files.path}: {error.strerror or error}; the last checkpoint is "
            "intact, run again once this is mended"
        ) from error


def tidy(files: RunFolder) -> None:
    """Remove what killed processes left half written in a run folder. The caller holds it."""
    files.checkpoint.with_suffix(".tmp").unlink(missing_ok=True)
    sweep_up(files.path.rglob(".*.tmp"))


def sweep_up(temporary: Iterable[Path]) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    for path in temporary:
        pid = path.suffixes[-2][1:] if len(path.suffixes) > 1 else ""
        with suppress(FileNotFoundError):  # its writer has just moved it in
            if pid.isdigit() and not _writes(int(pid), path):
                path.unlink()


def _writes(pid: int, path: Path) -> bool:
    """Whether ``pid`` may be the process that writes ``path``, and not one that began since and was
    given the same id, as after a restart of the machine.
    """
    if (begun := born(pid)) is None:
        return alive(pid, None)
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - begun / os.sysconf("SC_CLK_TCK")
    return age + SLACK > time.time() - path.stat().st_mtime


@contextmanager
def heartbeat(files: RunFolder) -> Iterator[None]:
    """Touch the folder's heartbeat once a second."""
    with beating(files.beat):
        yield


@contextmanager
def beating(beat: Callable[[], None]) -> Iterator[None]:
    """Call ``beat`` once a second while the block runs; a disk that is full or gone is no matter
    of the heartbeat's.
    """
    ended = threading.Event()

    def loop() -> None:
        while not ended.is_set():
            with suppress(OSError):
                beat()
            ended.wait(BEAT)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def born(pid: int) -> int | None:
    """When the process began, in the system's own count, so that a process id which is used again
    is not taken for the old process; None where none lives or the system does not tell.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def alive(pid: int, begun: int | None) -> bool:
    """Whether the process ``pid`` of this machine that began at ``begun`` still lives."""
    if begun is not None:
        return born(pid) == begun
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    # one that was killed, and whose parent has not asked for its end yet, can still be signalled
    return born(pid) is not None or not Path("/proc/self/stat").exists()
