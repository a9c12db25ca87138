"""One piece of work, disturbed at its n-th writing call and done again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from typing import Any

from tests.faults.injector import ACTIONS, HALVES, LASTING, Ended, Injector, Warm
from tests.faults.states import difference


@dataclass
class Bench:
    """``function`` (of ``targets``) does the work of ``config`` in a folder that is given to it
    last, after ``prepare`` laid into it what the work begins with; ``state`` is what of that folder
    must not depend on faults. A disturbed process may be killed, or end with one of ``codes``.
    """

    folder: Path
    injector: Injector
    process: Warm
    function: str
    config: Path
    state: Callable[[Path], dict[str, Any]]
    codes: tuple[int, ...] = (0, 2)
    prepare: Callable[[Path], object] = Path.exists

    def __post_init__(self) -> None:
        first, whole = self.folder / "first", self.folder / "whole"
        self.prepare(first)
        self.ok(self.work(first))  # prepares what is kept elsewhere, as the corpus
        self.prepare(whole)
        self.injector.arm(whole, 0, "kill")
        self.ok(self.work(whole))
        self.calls = self.injector.disarm()
        self.whole = self.state(whole)
        assert not (wrong := difference(self.state(first), self.whole)), wrong

    def work(self, folder: Path) -> Ended:
        return self.process.call(f"tests.faults.targets:{self.function}", self.config, folder)

    def ok(self, ended: Ended) -> None:
        assert ended.code == 0, ended.output

    def check(self, at: int, action: str) -> None:
        """The fault; the work again, undisturbed; and nothing is to be seen of it."""
        folder = self.folder / "faulty"
        shutil.rmtree(folder, ignore_errors=True)
        self.prepare(folder)
        self.injector.arm(folder, at, action)
        first = self.work(folder)
        self.injector.disarm()
        story = f"{action} at call {at}, {self.injector.what}:\n{first.output}"
        assert self.injector.what, f"{story}was not reached"
        assert first.code in (*self.codes, -9), f"exit code {first.code}: {story}"
        assert "Traceback" not in first.output, story
        again = self.work(folder)
        story += again.output
        assert again.code == 0, story
        left = {path.name for path in self.process.scratch.iterdir()}
        assert left <= {f"torchinductor_{getuser()}"}, f"{story}\n{left}"  # torch's cache
        assert not (wrong := difference(self.state(folder), self.whole)), story + wrong

    def check_all(self, faults: Iterable[tuple[int, str]]) -> None:
        """Each of (call, action); all that went wrong is told at the end."""
        wrong, count = [], 0
        for at, action in faults:
            count += 1
            try:
                self.check(at, action)
            except AssertionError as error:
                wrong.append(str(error)[:3000])
        assert not wrong, f"{len(wrong)} of {count} faults:\n" + "\n\n".join(wrong)[:30000]

    def every(self, action: str, step: int = 1) -> Iterator[tuple[int, str]]:
        """``action`` at every call, or at each ``step``-th; after a kill half of the call, where it
        can be halved: one that is done whole is a kill before the next.
        """
        for at in range(1, self.calls + 1, step):
            yield at, action
            if action == "kill" and self.injector.what.split(" ")[0] in HALVES:
                yield at, "half"

    def stride(
        self, step: int, actions: Collection[str] = (*ACTIONS, *LASTING)
    ) -> list[tuple[int, str]]:
        """Every ``step``-th call of each action, each action at other calls."""
        return [
            (at, action)
            for index, action in enumerate(actions)
            for at in range(1 + index * step // len(actions), self.calls + 1, step)
        ]
