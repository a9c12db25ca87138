"""What compares a pipeline with one process is sensitive: each bug is planted once, on two ranks,
and must be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from processes import on_ranks
from ranks import Piped, pipelined
from test_ranks import LOOPED, OPEN, check, check_depth, trunk
from torch import distributed
from torch.multiprocessing.spawn import ProcessRaisedException

from attnres_lab.pipeline import run
from attnres_lab.pipeline.stage import Ledger, Part
from attnres_lab.residual.attnres import AttnRes
from attnres_lab.training.probe import Probe

TIED = trunk(OPEN, tie_embeddings=True)
STEPS = 2


def _without(kind: str) -> Callable[..., Any]:
    """What a variant says is carried, less the names of a kind: they cross no hop."""
    carry = AttnRes.carry

    def wrong(self: AttnRes, state: Any, index: int) -> Any:
        return {n: x for n, x in carry(self, state, index).items() if not n.startswith(kind)}

    return wrong


def _of_first_rank(norm: Callable[..., Any], parameters: Any) -> Any:
    return norm(parameters) * (distributed.get_rank() == 0)


def _keeps(init: Callable[..., None], self: Part, *args: Any) -> None:
    init(self, *args)
    self.closes = False


def _add_up(add_up: Callable[..., None], parameters: Any, *args: Any) -> None:
    if len(given := list(parameters)) > 1:  # not the embedding alone
        add_up(given, *args)


def _wrapped(wrong: Callable[..., Any], right: Callable[..., Any]) -> Callable[..., Any]:
    """A method that is told the right one first."""
    return lambda *args: wrong(right, *args)


@dataclass(frozen=True)
class Bug:
    owner: Any
    name: str
    wrong: Any

    def plant(self) -> Any:
        return patch.object(self.owner, self.name, self.wrong)


_deposit, _hook = Ledger.deposit, Probe._hook
#: Numbers are wrong.
SILENT: dict[str | None, Bug | None] = {
    None: None,
    "closed blocks do not cross": Bug(AttnRes, "carry", _without("block")),
    "the open block does not cross": Bug(AttnRes, "carry", _without("partial")),
    "later gradients of a source are lost": Bug(Ledger, "deposit", lambda *_: None),
    "the norm is without the second rank's stages": Bug(
        run, "_norm", partial(_of_first_rank, run._norm)
    ),
    "a tied embedding has the gradient of one end": Bug(
        run, "_add_up", partial(_add_up, run._add_up)
    ),
    "a stage's rows are another's": Bug(Probe, "_hook", lambda self, index: _hook(self, index ^ 4)),
}
#: The step itself fails.
LOUD: dict[str, tuple[Bug, str]] = {
    "the cache is not emptied": (
        Bug(Part, "__init__", _wrapped(_keeps, Part.__init__)),
        "the pipeline's step left",
    ),
    "deposits are not emptied": (
        Bug(Ledger, "withdraw", lambda self, chunk, name: self.deposits.get(chunk, {}).get(name)),
        "the pipeline's step left",
    ),
    "deposits are of another micro-batch": (
        Bug(Ledger, "deposit", lambda self, chunk, *args: _deposit(self, chunk + 1, *args)),
        "the pipeline's step left",
    ),
}


def with_bug(bug: Bug | None) -> Piped:
    with ExitStack() as stack:
        if bug is not None:
            stack.enter_context(bug.plant())
        return pipelined(TIED, LOOPED, STEPS)


def silent(rank: int) -> dict[str | None, Piped]:
    return {name: with_bug(bug) for name, bug in SILENT.items()}


def loud(name: str, rank: int) -> Piped:
    return with_bug(LOUD[name][0])


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return on_ranks(2, tmp_path_factory.mktemp("planted"), silent)


@pytest.mark.slow
@pytest.mark.parametrize("bug", SILENT, ids=str)
def test_a_bug_that_changes_numbers_is_caught(bug: str | None, planted: Any) -> None:
    def compare() -> None:
        check(planted[bug], TIED)
        check_depth(planted[bug], TIED, LOOPED)

    if bug is None:
        compare()
        return
    with pytest.raises(AssertionError):
        compare()


@pytest.mark.slow
@pytest.mark.parametrize("bug", LOUD)
def test_a_bug_that_leaves_something_behind_fails_the_step(bug: str, tmp_path: Path) -> None:
    with pytest.raises(ProcessRaisedException, match=LOUD[bug][1]):
        on_ranks(2, tmp_path, partial(loud, bug))
