"""Depth attention over a few tokens without gradients, where launching operations costs more than
their arithmetic: five a sublayer.

Every read is one softmax and one product over rows that lie in one buffer; phases (twophase.py)
save traffic, of which there is none here. Shapes: M tokens, D width, K closed rows, R reads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attnres_lab.ops.reads import Reads

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

    def __init__(self, x: Tensor, query: Tensor, reads: Reads) -> None:
        query = query.to(torch.promote_types(x.dtype, torch.float32))
        self.embedding, self.reads, self.heads = x, reads, reads.weighing.heads
        self.static = reads.weighing.mixing == "static"
        R, K, D = reads.count, len(reads.ends) + 1, x.shape[-1]
        self.values = query.new_empty(K, x.numel() // D, D)
        if self.static:
            self.logits = query[:, :, None, None].expand(-1, -1, x.numel() // D, 1)
        else:
            self.logits = query.new_empty(R, K, x.numel() // D, self.heads)
            self.query = query.view(R, self.heads, -1).transpose(0, 1)
        self.row, self.slot = 0, 0
        self._place(x, fresh=True)

    def _place(self, out: Tensor, fresh: bool) -> None:
        row, out = self.values[self.slot], out.reshape(self.values.shape[1:])
        if fresh:
            row.copy_(out)
        else:
            row.add_(out)
        if self.static:
            return
        key, logits = row, self.logits[:, self.slot]
        if self.reads.weighing.key_norm:
            key = F.rms_norm(row, row.shape[-1:], None, self.reads.eps)
        with torch.autocast(row.device.type, enabled=False):
            if self.heads == 1:
                torch.mm(self.query[0], key.t(), out=logits[..., 0])
            else:
                by_head = key.view(len(key), self.heads, -1).permute(1, 2, 0)
                logits.copy_(torch.bmm(self.query, by_head).permute(1, 2, 0))

    def push(self, out: Tensor) -> Decoding:
        """Add a sublayer's output."""
        fresh = self.row in self.reads.closing
        self.slot += fresh
        self.row += 1
        self._place(out, fresh)
        return self

    def read(self) -> Tensor:
        """The depth-weighted sum of the sources, in the shape of the embedding; the plain sum after
        the last row, where nothing reads it.
        """
        if self.row == 0:
            return self.embedding
        if self.row > self.reads.count:
            h = self.values[: self.slot + 1].sum(0)
        else:
            values = self.values[self._seen()]
            items = values.view(len(values), -1, values.shape[-1] // self.heads)
            with torch.autocast(values.device.type, enabled=False):
                h = torch.bmm(self._alpha().flatten(1).t()[:, None], items.transpose(0, 1))
        return h.view(self.embedding.shape).to(self.embedding.dtype)

    def weights(self) -> Tensor:
        """Depth weights of the read that was just made, the mean over heads, [sources, ...]."""
        return self._alpha().mean(-1).view(-1, *self.embedding.shape[:-1])

    def _alpha(self) -> Tensor:
        return self.reads.weighing.weights(self.logits[self.row - 1, self._seen()])

    def _seen(self) -> slice | list[int]:
        """Slots that the read sees."""
        first = self.reads.first_slot(self.slot + 1)
        return slice(self.slot + 1) if first == 1 else [0, *range(first, self.slot + 1)]
