"""The two-phase schedule (arXiv 2603.15031, section 4) with an exact backward, for Full and Block;
made for CPUs. Its arithmetic is in ledger.py.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnres_lab.ops.ledger import Ledger


def serves(x: Tensor, parameter: Tensor) -> bool:
    """Whether this schedule is the one to use: eager on a CPU, in a dtype that its products can be
    trusted with.
    """
    exact = x.dtype == parameter.dtype and x.dtype in (torch.float32, torch.float64)
    return (
        x.device.type == "cpu"
        and exact
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


#: Reads that share a phase 1 when every row is a block of its own (Full).
WINDOW = 1


def phases(ends: Collection[int]) -> frozenset[int]:
    """Reads before which phase 1 is done: the first of every block; for Full, where blocks are only
    a schedule, every few.
    """
    return frozenset(range(1, max(ends) + 1, WINDOW) if len(ends) == max(ends) else (1, *ends))


class _Push(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ledger: Ledger, out: Tensor, partial: Tensor | None, chain: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        row, inverse_rms, readers = ledger.push(out, None if partial is None else partial.detach())
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(row, inverse_rms)
        ctx.ledger, ctx.readers, ctx.slot, ctx.first, ctx.add = (
            ledger,
            readers,
            ledger.slot,
            ledger.row == 0,
            partial is not None,
        )
        return (None if ledger.row in ledger.closing else row), row.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_row: Tensor | None, d_chain: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        row, inverse_rms = ctx.saved_tensors
        gradient = ctx.ledger.pull(row, inverse_rms, ctx.slot, ctx.readers, d_row)
        d_query = ctx.ledger.finish_backward() if ctx.first else None
        return None, gradient.view(ctx.ledger.shape), gradient if ctx.add else None, d_query


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ledger: Ledger, index: int, chain: Tensor) -> Tensor:
        h = ledger.read(index)
        if index == len(ledger.lse):
            ledger.finish_forward()
        ctx.save_for_backward(h)
        ctx.ledger, ctx.index = ledger, index
        return h.view(ledger.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_read: Tensor) -> tuple[None, None, None]:
        ctx.ledger.file(ctx.index, d_read, *ctx.saved_tensors)
        return None, None, None


class TwoPhase(NamedTuple):
    """State of the schedule after some sublayers. A state is stepped once: its buffers go on with
    the next one.
    """

    ledger: Ledger
    embedding: Tensor
    row: int
    partial: Tensor | None
    chain: Tensor

    @classmethod
    def start(
        cls,
        x: Tensor,
        query_RxD: Tensor,
        ends: Collection[int],
        phases: Collection[int],
        eps: float,
    ) -> TwoPhase:
        """From the embedding [..., D] and the queries of reads 1 .. R, key gains folded in.

        ``ends``: rows that close a block, the last one included. ``phases``: reads before which
        phase 1 is done.
        """
        ledger = Ledger(x, query_RxD, ends, phases, eps)
        return cls(ledger, x, 0, *_Push.apply(ledger, x, None, query_RxD))  # type: ignore[no-untyped-call]

    def read(self) -> Tensor:
        """The depth-weighted sum of the sources, in the shape of the embedding."""
        self._check()
        if self.row == 0:
            return self.embedding
        return _Read.apply(self.ledger, self.row, self.chain)  # type: ignore[no-any-return,no-untyped-call]

    def push(self, out: Tensor) -> TwoPhase:
        """Add a sublayer's output."""
        self._check()
        after = _Push.apply(self.ledger, out, self.partial, self.chain)  # type: ignore[no-untyped-call]
        return TwoPhase(self.ledger, self.embedding, self.row + 1, *after)

    def weights(self) -> Tensor:
        """Depth weights of the read that was just made, [sources, ...]."""
        return self.ledger.weights(self.row).detach()

    def _check(self) -> None:
        if self.row != self.ledger.row:
            raise ValueError(
                f"depth attention: the state after {self.row} sublayers was already stepped to "
                f"{self.ledger.row}; start again"
            )
