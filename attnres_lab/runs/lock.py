"""One process at a time in a run folder, and a sign that it lives."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder

BEAT = 1.0  # seconds
SLACK = 2.0  # seconds that the clock of a disk may be off
LOCKED = "ATTNRES_LOCKED"  # the run folder that this process, or the one that started it, holds


@contextmanager
def only_one(files: RunFolder, patience: float = 0.0, *, shared: bool = False) -> Iterator[None]:
    """Hold the folder, whatever is done in it, and show by its heartbeat that somebody does. Who
    holds it already goes on, and so do the ranks that its holder starts; ``shared``: by processes
    that are all alike, as torchrun starts them.

    Raises UserError where another process still holds it after ``patience`` seconds.
    """
    files.hold()
    place, before = str(files.path.absolute()), os.environ.get(LOCKED, "")
    if before == place:
        yield
        return
    with ExitStack() as stack:
        if not shared:
            try:
                stack.enter_context(FileLock(files.lock, timeout=patience))
            except Timeout:
                raise UserError(f"{files.path}: another process works in this folder") from None
            tidy(files)
        stack.enter_context(beating(files.beat))
        os.environ[LOCKED] = place
        try:
            yield
        finally:
            os.environ[LOCKED] = before


@contextmanager
def mendable(path: Path) -> Iterator[None]:
    """What the disk raises, while a run's or a sweep's folder ``path`` is written, as a UserError
    that says what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT and error.filename == str(path):
            why = "was moved, deleted or unmounted while it was in use; put it back and run again"
            raise UserError(f"{path}: {why}") from error
        raise UserError(
            f"{error.filename or path}: {error.strerror or error}; what was written before is "
            "intact: mend this, then run it again"
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
