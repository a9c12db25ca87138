"""Faults at chosen writing calls, in processes forked from a warm one: imports are paid once."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
#: What happens at the call: the process is killed before it, after half of it, or it fails once.
ACTIONS = {"kill": -1, "half": -2, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
HALVES = {"write", "pwrite", "pwrite64", "writev", "sendfile", "sendfile64"}
#: From the call on nothing can be written: a disk that is full or became read-only.
LASTING = {"full": errno.ENOSPC, "read-only": errno.EROFS}


class Control(ctypes.Structure):
    """What ``preload.c`` maps."""

    _fields_ = (
        ("calls", ctypes.c_long),
        ("at", ctypes.c_long),
        ("action", ctypes.c_int),
        ("fired", ctypes.c_int),
        ("lasting", ctypes.c_int),
        ("under", ctypes.c_char * 1024),
        ("what", ctypes.c_char * 1024),
    )


@cache
def library() -> Path:
    """The compiled ``preload.c``; skips the test where none can be had."""
    if not (compiler := shutil.which("cc") or shutil.which("gcc")) or sys.platform != "linux":
        pytest.skip("faults are injected by a small C library: install a C compiler, on Linux")
    path = Path(tempfile.mkdtemp(prefix="attnres-faults-")) / "preload.so"
    source = Path(__file__).with_name("preload.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, source, "-ldl"], check=True)
    return path


class Injector:
    """A control file, the environment that loads the library, and what is to go wrong."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "control"
        self.file.write_bytes(bytes(ctypes.sizeof(Control)))
        with open(self.file, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.control = Control.from_buffer(self._map)
        preload = " ".join(filter(None, [str(library()), os.environ.get("LD_PRELOAD")]))
        self.environment = {"LD_PRELOAD": preload, "FAULT_CONTROL": str(self.file)}

    def arm(self, under: Path, at: int, action: str) -> None:
        """From now on: ``action`` (of ACTIONS or LASTING) at writing call number ``at`` (from 1; 0:
        only count).
        """
        self.control.under = b""
        self.control.calls, self.control.at, self.control.fired = 0, at, 0
        self.control.action, self.control.what = (ACTIONS | LASTING)[action], b""
        self.control.lasting = action in LASTING
        self.control.under = os.fsencode(under)

    def disarm(self) -> int:
        """End it; the number of calls since."""
        self.control.under = b""
        return self.control.calls

    @property
    def what(self) -> str:
        """The call that went wrong; empty where it was not reached."""
        return self.control.what.decode()


@dataclass(frozen=True)
class Ended:
    """How a call ended: exit code as of subprocess, and what it printed."""

    code: int
    output: str


class Warm:
    """A process with ``modules`` imported that forks one child for each call; ``scratch`` is the
    folder of their temporary files.
    """

    def __init__(self, injector: Injector, folder: Path, modules: list[str]) -> None:
        self.log, self.scratch = folder / "warm.log", folder / "scratch"
        self.scratch.mkdir()
        environment = {
            **os.environ,
            **injector.environment,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.scratch),
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm", *modules],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, function: str, *args: Any) -> Ended:
        """``function`` ("module:name") with ``args`` in a child of its own."""
        self.start(function, *args)
        return self.end()

    def start(self, function: str, *args: Any) -> None:
        """Begin a call; ``end`` waits for it."""
        assert self._process.stdin
        task = {"function": function, "args": [str(arg) for arg in args], "log": str(self.log)}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()

    def ended(self) -> bool:
        """Whether the call that was begun is over."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def end(self) -> Ended:
        """How the call that was begun ends."""
        assert self._process.stdout
        answer = self._process.stdout.readline()
        return Ended(int(answer), self.log.read_text(errors="replace"))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()  # closes the pipes


@contextmanager
def warm(folder: Path, *modules: str) -> Iterator[tuple[Injector, Warm]]:
    """An injector and a warm process that it reaches."""
    folder.mkdir(parents=True, exist_ok=True)
    injector = Injector(folder)
    process = Warm(injector, folder, list(modules))
    try:
        yield injector, process
    finally:
        process.close()
