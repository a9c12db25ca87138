"""Random faults over real sweeps: who is hit, by what, and when are drawn from a seed; what is left
after the next undisturbed start is compared with a sweep that nothing happened to.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.forked import beside
from tests.faults.injector import ACTIONS, Ended, Injector, Warm
from tests.faults.states import difference
from tests.faults.stores import provide

TARGET = "tests.faults.targets:mirrored_sweep"
PATIENCE = 60.0  # seconds until everything that a killed coordinator started has to be gone


@dataclass
class Storm:
    """A sweep in ``file``, started again and again in a folder of its own. ``state`` is what of the
    folder of runs must not depend on faults; ``start`` how its trials are started.
    """

    name: str
    file: Path
    injector: Injector
    process: Warm
    store: Path
    state: Callable[[Path], dict[str, Any]]
    start: str = "fork"
    counts: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs = self.file.parent / "calm"
        for _ in range(2):  # the first prepares the corpus and learns speeds
            self.fresh()
            began = time.monotonic()
            ended = self.end_undisturbed()
            self.seconds = time.monotonic() - began
            assert ended.code == 0, ended.output
        self.injector.arm(self.runs, 0, "kill")
        self.fresh()
        self.end_undisturbed()
        self.calls = self.injector.disarm()
        self.calm = self.state(self.runs)
        self.runs = self.file.parent / "stormy"

    def fresh(self) -> None:
        """An empty folder of runs with an empty store."""
        for path in (self.runs, beside(self.runs, "roles")):
            shutil.rmtree(path, ignore_errors=True)
        provide(self.store, self.runs)
        self.story = []

    def disturbed(self, random: Random, roles: list[str]) -> bool:
        """A start in which one of ``roles`` is killed at a random moment, and a random call of
        whoever makes it goes wrong; both count where they happened. Whether the sweep is done.
        """
        action, at = random.choice(list(ACTIONS)), random.randint(1, self.calls)
        role, after = random.choice(roles), random.uniform(0, self.seconds)
        after *= 1 if self.start == "fork" else 5  # the real server imports torch first
        before = set(self._living(role))
        self.injector.arm(self.runs, at, action)
        self.process.start(TARGET, self.file, self.runs, self.start)
        moment = time.monotonic() + after
        while not self.process.ended():
            living = [pid for pid in self._living(role) if pid not in before]
            if living and time.monotonic() > moment:
                with suppress(ProcessLookupError):
                    os.kill(random.choice(living), signal.SIGKILL)
                    self._tell(f"kill of {role}", f"after {after:.2f} s")
                    break
            time.sleep(0.005)
        ended = self.process.end()
        self.injector.disarm()
        if self.injector.what:
            self._tell(action, f"at call {at}, {self.injector.what}")
        self.story.append(f"exit code {ended.code}:\n{ended.output}")
        assert ended.code in (-9, 0, 1, 2), "\n".join(self.story)
        self._wait_for_the_orphans()
        return ended.code == 0

    def check(self) -> None:
        """One more start, and nothing is to be seen of what happened before it."""
        ended = self.end_undisturbed()
        story = "\n".join([self.name, *self.story, ended.output])
        assert ended.code == 0, story
        assert "Traceback" not in story, story
        assert not (wrong := difference(self.state(self.runs), self.calm)), f"{story}\n{wrong}"

    def end_undisturbed(self) -> Ended:
        """A start to its end."""
        self.process.start(TARGET, self.file, self.runs, self.start)
        return self.process.end()

    def _tell(self, fault: str, when: str) -> None:
        self.counts[fault] += 1
        self.story.append(f"{fault} {when}")

    def _living(self, role: str = "*") -> list[int]:
        files = beside(self.runs, "roles").glob(f"{role}-*")
        pids = [int(file.name.rpartition("-")[2]) for file in files]
        return [pid for pid in pids if _lives(pid)]

    def _wait_for_the_orphans(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self._living("trial") or self._living("rank"):
            assert time.monotonic() < deadline, f"{self.story}: trials outlive their coordinator"
            time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
