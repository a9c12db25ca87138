"""Processes that would begin with an interpreter's start and its imports are forked instead, from
one that has them: the mirror, ranks, the ranks that Lightning starts. Each says which it is.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tests.faults.warm import leave

ROLES = "FAULT_ROLES"  # a folder: a file <role>-<pid> for each process
MODULES = {"attnres_lab.tracking": "mirror", "attnres_lab.training.run": "rank"}
_Popen = subprocess.Popen


def beside(runs: str | Path, name: str) -> Path:
    """A folder beside that of the runs, where nothing is disturbed."""
    return Path(runs).with_name(f"{name}-of-{Path(runs).name}")


def play(role: str, pid: int = 0) -> None:
    """Say what a process is, by default this one."""
    (Path(os.environ[ROLES]) / f"{role}-{pid or os.getpid()}").touch()


def popen(command: Sequence[str], **options: Any) -> Any:
    """In place of ``subprocess.Popen``."""
    words = [str(word) for word in command]
    ours = words[:2] == [sys.executable, "-m"] and words[2] in MODULES
    return Forked(words[2:], **options) if ours else _Popen(command, **options)


class Forked:
    """What callers use of ``subprocess.Popen``."""

    def __init__(
        self,
        words: list[str],
        stdin: int | None = None,
        env: dict[str, str] | None = None,
        start_new_session: bool = False,
        **_: Any,
    ) -> None:
        self.stdin: IO[str] | None = None
        self.returncode: int | None = None
        read, write = os.pipe() if stdin == subprocess.PIPE else (os.open(os.devnull, 0), -1)
        self.pid = os.fork()
        if not self.pid:
            if start_new_session:
                os.setsid()
            os.dup2(read, 0)
            os.closerange(3, 1024)
            _run(words, dict(os.environ if env is None else env))
        os.close(read)
        if write >= 0:
            self.stdin = os.fdopen(write, "w")

    def poll(self) -> int | None:
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self.pid, os.WNOHANG) if self.returncode is None else (0, 0)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout or 1e9)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("forked", timeout or 0)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _run(words: list[str], environment: dict[str, str]) -> None:
    """The body of the child: as ``python -m``."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    play(MODULES[words[0]])
    sys.stdin = os.fdopen(0)
    sys.argv = list(words)
    warnings.simplefilter("ignore")  # that the module is imported already

    def work() -> None:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)

    leave(work)
