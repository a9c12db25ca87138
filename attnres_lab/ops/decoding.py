"""Depth attention over a few tokens without gradients, where launching operations costs more than
their arithmetic: five a sublayer.

Every read is one softmax and one product over rows that lie in one buffer; phases (twophase.py)
save traffic, of which there is none here. Shapes: M tokens, D width, K closed rows, R reads.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

#: Elements of the hidden state up to which this way is the faster one (CPU,
#: docs/results/020-cost-on-cpus).
FEW = 2**15


def serves(x: Tensor) -> bool:
    """Whether these tokens are few and no gradient will be asked for."""
    return x.numel() <= FEW and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


class Decoding:
    """State of one forward pass, as ``TwoPhase``; in fp32 at least, reads in the dtype of the
    embedding. Sublayers are pushed in order, once.
    """

    def __init__(self, x: Tensor, query_RxD: Tensor, ends: Collection[int], eps: float) -> None:
        self.embedding, self.query, self.closing, self.eps = (
            x,
            query_RxD.to(torch.promote_types(x.dtype, torch.float32)),
            {0, *ends},
            eps,
        )
        (R, D), M = query_RxD.shape, x.numel() // x.shape[-1]
        self.values = self.query.new_empty(len(ends) + 1, M, D)
        self.logits = self.query.new_empty(R, len(ends) + 1, M)
        self.row, self.slot = 0, 0
        self._place(x, fresh=True)

    def _place(self, out: Tensor, fresh: bool) -> None:
        row, out = self.values[self.slot], out.reshape(self.values.shape[1:])
        if fresh:
            row.copy_(out)
        else:
            row.add_(out)
        with torch.autocast(row.device.type, enabled=False):
            torch.mm(
                self.query,
                F.rms_norm(row, row.shape[-1:], None, self.eps).t(),
                out=self.logits[:, self.slot],
            )

    def push(self, out: Tensor) -> Decoding:
        """Add a sublayer's output."""
        fresh = self.row in self.closing
        self.slot += fresh
        self.row += 1
        self._place(out, fresh)
        return self

    def read(self) -> Tensor:
        """The depth-weighted sum of the sources, in the shape of the embedding."""
        if self.row == 0:
            return self.embedding
        with torch.autocast(self.values.device.type, enabled=False):
            h = torch.bmm(
                self.weights().flatten(1).t()[:, None], self.values[: self.slot + 1].transpose(0, 1)
            )
        return h.view(self.embedding.shape).to(self.embedding.dtype)

    def weights(self) -> Tensor:
        """Depth weights of the read that was just made, [sources, ...]."""
        return (
            self.logits[self.row - 1, : self.slot + 1]
            .softmax(0)
            .view(-1, *self.embedding.shape[:-1])
        )
