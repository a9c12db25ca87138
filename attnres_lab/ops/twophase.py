"""The two-phase schedule (arXiv 2603.15031, section 4) with an exact backward, for Full and Block;
made for CPUs. Its arithmetic is in depth_buffer.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnres_lab.ops.depth_buffer import DepthBuffer
from attnres_lab.ops.reads import Reads


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


class _Push(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, buffer: DepthBuffer, out: Tensor, partial: Tensor | None, chain: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        row, inverse_rms, readers = buffer.push(out, None if partial is None else partial.detach())
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(row, inverse_rms)
        ctx.buffer, ctx.readers, ctx.slot, ctx.first, ctx.add = (
            buffer,
            readers,
            buffer.slot,
            buffer.row == 0,
            partial is not None,
        )
        return (None if buffer.row in buffer.reads.closing else row), row.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_row: Tensor | None, d_chain: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        row, inverse_rms = ctx.saved_tensors
        gradient = ctx.buffer.pull(row, inverse_rms, ctx.slot, ctx.readers, d_row)
        d_query = ctx.buffer.finish_backward() if ctx.first else None
        return None, ctx.buffer.hidden(gradient), gradient if ctx.add else None, d_query


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, buffer: DepthBuffer, index: int, chain: Tensor) -> Tensor:
        h = buffer.read(index)
        if index == len(buffer.lse):
            buffer.finish_forward()
        if not buffer.sigmoid:  # for gradient . output
            ctx.save_for_backward(h)
        ctx.buffer, ctx.index = buffer, index
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_read: Tensor) -> tuple[None, None, None]:
        ctx.buffer.file(ctx.index, d_read, *(ctx.saved_tensors or [None]))
        return None, None, None


class TwoPhase(NamedTuple):
    """State of the schedule after some sublayers. A state is stepped once: its buffers go on with
    the next one.
    """

    buffer: DepthBuffer
    embedding: Tensor
    row: int
    partial: Tensor | None
    chain: Tensor
    total: Tensor | None  # the sum of all rows, where no read comes last

    @classmethod
    def start(cls, x: Tensor, query: Tensor, reads: Reads) -> TwoPhase:
        """From the embedding [..., D] and the queries [R, D] of all reads, as ``Weighing.query``
        gives them; with static weights, from ``Reads.logits``.
        """
        buffer = DepthBuffer(x, query, reads)
        total = None if reads.output else x
        partial, chain = _Push.apply(buffer, x, None, query)  # type: ignore[no-untyped-call]
        return cls(buffer, x, 0, partial, chain, total)

    def read(self) -> Tensor:
        """The depth-weighted sum of the sources, in the shape of the embedding."""
        self._check()
        if self.row == 0:
            return self.embedding
        return _Read.apply(self.buffer, self.row, self.chain)  # type: ignore[no-any-return,no-untyped-call]

    def sum(self) -> Tensor:
        """Of all rows, where no read comes last."""
        assert self.total is not None
        return self.total

    def push(self, out: Tensor) -> TwoPhase:
        """Add a sublayer's output."""
        self._check()
        total = None if self.total is None else self.total + out
        if self.row == self.buffer.reads.count:  # nothing reads this row
            return self._replace(row=self.row + 1, total=total)
        partial, chain = _Push.apply(self.buffer, out, self.partial, self.chain)  # type: ignore[no-untyped-call]
        return TwoPhase(self.buffer, self.embedding, self.row + 1, partial, chain, total)

    def weights(self) -> Tensor:
        """Depth weights of the read that was just made, [sources, ...]."""
        return self.buffer.weights(self.row).detach()

    def _check(self) -> None:
        if self.row != self.buffer.row:
            raise ValueError(
                f"depth attention: the state after {self.row} sublayers was already stepped to "
                f"{self.buffer.row}; start again"
            )
