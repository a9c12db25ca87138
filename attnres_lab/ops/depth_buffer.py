"""The sources of one forward pass in one buffer, and the arithmetic of the two-phase schedule
(twophase.py) on them, without autograd.

Rows, reads and slots are those of ``Reads``. Closed rows lie in one buffer [K, T, W], and

    phase 1   one batched product of the closed rows for the next few reads
              (their queries do not depend on the input)
    phase 2   per read, an online-softmax merge with the rows that have come since, and with row 0
              where the window has left it behind
    logits    of a row for all its readers, in one matrix product while it is warm
    backward  a read only files its gradient; a row's gradient, from all its readers at once,
              is formed by its ``_Push`` node, which a chain of empty tensors orders after them

Shapes: M tokens (batch x time), D width, H heads, K closed rows, R reads, n readers of one row.
What has weights of its own is one item, T items of width W: a head of a token, heads first
(T = H M, W = D / H); with learned logits all tokens together (T = 1, W = M D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnres_lab.ops.memory import uninitialised
from attnres_lab.ops.reads import Reads


@dataclass
class _BackwardPass:
    """What the reads have filed during one backward pass."""

    task: int
    d_read: Tensor  # [R, T, W] gradients of the reads
    delta: Tensor  # [R, T] gradient . output of each read
    d_query: Tensor  # [R, H, W], or of the learned logits [R, 1, K]
    scratch: Tensor  # in the shape of the embedding
    filed: set[int] = field(default_factory=set)


class DepthBuffer:
    """Buffers of one forward pass. Holds no tensor with a history: that would be a cycle through
    the graph, never freed.
    """

    def __init__(self, x: Tensor, query: Tensor, reads: Reads) -> None:
        self.shape, self.eps, self.reads = x.shape, x.new_tensor(reads.eps), reads
        self.static = reads.weighing.mixing == "static"
        self.sigmoid = reads.weighing.mixing == "sigmoid"
        R, K, D = reads.count, len(reads.ends) + 1, x.shape[-1]
        self.heads = reads.weighing.heads
        self.tokens, self.width = x.numel() // D, D // self.heads
        if self.static:
            self.tokens, self.width = 1, x.numel()
        T = self.heads * self.tokens
        self.values = uninitialised(x, K, T, self.width)
        # learned logits [R, K], or queries [R, H, W]
        self.query = query.detach().view(R, self.heads, -1)
        self.logits = query.detach().view(R, K, 1) if self.static else x.new_empty(R, K, T)
        self.lse = x.new_empty(R, T)
        self.row, self.slot = -1, 0  # newest row, and its place in the buffer
        self.newest = self.first = self.first_lse = x
        # which read and which slots phase 1 was for; whether reads share its result
        self.first_read, self.first_slots, self.shared = 0, range(0), True
        self.backward_pass: _BackwardPass | None = None

    def items(self, x: Tensor) -> Tensor:
        """A hidden state as [H, M, W]: a view."""
        return x.reshape(self.tokens, self.heads, self.width).transpose(0, 1)

    def hidden(self, items: Tensor) -> Tensor:
        """The other way, in the shape of the embedding."""
        return self.by_head(items).transpose(0, 1).reshape(self.shape)

    def by_head(self, x: Tensor) -> Tensor:
        """Items [T, W], or a number of each [T], as [H, M, ...]."""
        return x.view(self.heads, self.tokens, *x.shape[1:])

    def push(self, out: Tensor, partial: Tensor | None) -> tuple[Tensor, Tensor | None, range]:
        """Add a row: its values [T, W], its inverse rms [M] and its readers."""
        self.slot += self.row in self.reads.closing
        self.row += 1
        out, readers = self.items(out), self.reads.readers(self.row)
        if self.row in self.reads.closing:
            # with a version counter of its own: later rows are written into the same buffer
            row = self.values[self.slot].data
            if partial is None:
                self.by_head(row).copy_(out)
            else:
                torch.add(self.by_head(partial), out, out=self.by_head(row))
        else:
            row = out if partial is None else self.by_head(partial) + out
            row = row.reshape(self.values.shape[1:])
        self.newest = row.detach()
        return row, self._write_logits(row, readers), readers

    def _write_logits(self, row: Tensor, readers: range) -> Tensor | None:
        if self.static:
            return None
        span, inverse_rms, items = _span(readers), None, self.by_head(row)
        logits = self.logits[span, self.slot].view(-1, self.heads, self.tokens)
        for head in range(self.heads):
            torch.mm(self.query[span, head], items[head].t(), out=logits[:, head])
        if self.reads.weighing.key_norm:
            norm = self.by_head(torch.linalg.vector_norm(row, dim=-1))
            norm = norm[0] if self.heads == 1 else torch.linalg.vector_norm(norm, dim=0)
            inverse_rms = torch.addcmul(self.eps, norm, norm, value=1 / self.shape[-1]).rsqrt_()
            logits.mul_(inverse_rms)
        return inverse_rms

    def read(self, index: int) -> Tensor:
        """Input of sublayer ``index``, in the shape of the embedding."""
        if index in self.reads.phases or not self.first_slots:
            self._phase_one(index)
        place, logits = index - self.first_read, self.logits[index - 1]
        first, late = self.first[place], list(range(self.first_slots.stop, self.slot + 1))
        if self.first_slots.start:
            late.insert(0, 0)
        if not late:  # nothing has come since phase 1
            h = first.clone(memory_format=torch.contiguous_format) if self.shared else first
            if not self.sigmoid:
                self.lse[index - 1] = self.first_lse[place]
        elif self.sigmoid:
            h = first
            for slot in late:
                h = torch.addcmul(h, self._row(slot), logits[slot].sigmoid()[:, None])
        elif len(late) == 1:  # the softmax of two logits is a sigmoid
            near, lse = logits[late[0]], self.first_lse[place]
            torch.logaddexp(lse, near, out=self.lse[index - 1])
            h = torch.lerp(first, self._row(late[0]), torch.sub(near, lse).sigmoid_()[:, None])
        else:
            merged = torch.stack([self.first_lse[place], *(logits[slot] for slot in late)])
            torch.logsumexp(merged, 0, out=self.lse[index - 1])
            weights = merged.softmax(0)
            h = first * weights[0, :, None]
            for slot, weight in zip(late, weights[1:], strict=True):
                h.addcmul_(self._row(slot), weight[:, None])
        return self.hidden(h)

    def _row(self, slot: int) -> Tensor:
        return self.newest if slot == self.slot else self.values[slot]

    def _phase_one(self, index: int) -> None:
        """Partial reads (normalised, with softmax) of the closed rows in the window, for the reads
        up to the next phase.
        """
        closed = self.slot + (self.row in self.reads.closing)
        start = self.reads.first_slot(closed)
        slots = range(start if start > 1 else 0, closed)
        until = min((p for p in self.reads.phases if p > index), default=len(self.lse) + 1)
        logits = self.logits[index - 1 : until - 1, slots.start : closed]
        self.first_read, self.first_slots = index, slots
        # h must not keep the other reads' memory
        self.shared = len(slots) == 1 or len(logits) > 1
        if len(slots) == 1 and not self.sigmoid:
            self.first = self.values[slots.start, None].expand(len(logits), -1, -1)
            self.first_lse = logits[:, 0]
            return
        if self.sigmoid:
            weights = logits.sigmoid()
        else:
            largest = logits.amax(1)
            weights = (logits - largest[:, None]).exp_()
            total = weights.sum(1)
            weights.div_(total[:, None])
            self.first_lse = largest.add_(total.log_())
        rows = self.values[slots.start : closed]
        self.first = rows.new_empty(len(weights), *rows.shape[1:])
        for per_read, first in zip(weights, self.first, strict=True):
            _weighted_sum(per_read, rows, out=first)

    def finish_forward(self) -> None:
        """Let go of the rows: what the backward needs, its nodes have saved, and autograd frees it
        in the usual way.
        """
        del self.values, self.newest, self.first, self.first_lse

    def weights(self, index: int) -> Tensor:
        """Depth weights of a read that has been made, the mean over heads, [sources, ...]."""
        slots = [0, *range(self.reads.first_slot(self.slot + 1), self.slot + 1)]
        alpha = self._alpha(self.logits[index - 1, slots], self.lse[index - 1])
        alpha = alpha.view(len(slots), self.heads, self.tokens).mean(1)
        return alpha.expand(-1, math.prod(self.shape[:-1])).view(-1, *self.shape[:-1])

    def _alpha(self, logits: Tensor, lse: Tensor) -> Tensor:
        return logits.sigmoid() if self.sigmoid else (logits - lse).exp_()

    def file(self, index: int, d_read: Tensor, h: Tensor | None) -> None:
        """Note the gradient of a read."""
        now = self._now()
        self.by_head(now.d_read[index - 1]).copy_(self.items(d_read))
        if h is not None:
            delta = self.by_head(now.delta[index - 1])
            product = torch.mul(d_read, h, out=now.scratch)
            torch.sum(self.items(product), -1, out=delta)
        now.filed.add(index)

    def pull(
        self,
        row: Tensor,
        inverse_rms: Tensor | None,
        slot: int,
        readers: range,
        d_row: Tensor | None,
    ) -> Tensor:
        """Gradient [T, W] of a row from all its readers, and from ``d_row``, the sum that goes on;
        adds to the gradient of the queries.
        """
        now, span = self._now(), _span(readers)
        for index in set(readers) - now.filed:  # this backward pass did not come through that read
            now.d_read[index - 1] = now.delta[index - 1] = 0
            now.filed.add(index)
        d_read, logits = now.d_read[span], self.logits[span, slot]
        alpha = self._alpha(logits, self.lse[span])
        d_logits = _dots(row, d_read)
        if self.sigmoid:
            d_logits.mul_(1 - alpha)
        else:
            d_logits.sub_(now.delta[span])
        d_logits.mul_(alpha)
        # open rows have one reader
        gradient = (
            _weighted_sum(alpha, d_read)
            if d_row is None
            else torch.addcmul(d_row, d_read[0], alpha[0, :, None])
        )
        if self.static:
            now.d_query[span, 0, slot] = d_logits[:, 0]
            return gradient
        return self._through_keys(gradient, row, inverse_rms, readers, (d_logits, logits))

    def _through_keys(
        self,
        gradient: Tensor,
        row: Tensor,
        inverse_rms: Tensor | None,
        readers: range,
        at_logits: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Adds to ``gradient`` what comes through the row's logits, whose gradients and values
        ``at_logits`` are.
        """
        now, span, (along_query, logits) = self._now(), _span(readers), at_logits
        items, into = self.by_head(row), self.by_head(gradient)
        along_query, logits = (x.view(-1, self.heads, self.tokens) for x in (along_query, logits))
        if inverse_rms is not None:
            along_query.mul_(inverse_rms)
        for head in range(self.heads):
            now.d_query[span, head].addmm_(along_query[:, head], items[head])
            into[head].addmm_(along_query[:, head].t(), self.query[span, head])
        if inverse_rms is not None:
            along_row = (along_query * logits).flatten(0, 1).sum(0).mul_(inverse_rms)
            into.addcmul_(items, along_row[:, None], value=-1 / self.shape[-1])
        return gradient

    def finish_backward(self) -> Tensor:
        """Gradient of the queries; the pass is over."""
        now = self._now()
        self.backward_pass = None
        return now.d_query.flatten(1)

    def _now(self) -> _BackwardPass:
        task = torch._C._current_graph_task_id()
        if self.backward_pass is None or self.backward_pass.task != task:
            d_read = uninitialised(self.lse, *self.lse.shape, self.width)
            self.backward_pass = _BackwardPass(
                task,
                d_read,
                torch.empty_like(self.lse),
                torch.zeros_like(self.query),
                self.lse.new_empty(self.shape),
            )
        return self.backward_pass


def _span(readers: range) -> slice:
    return slice(readers.start - 1, readers.stop - 1)


def _dots(row_TxW: Tensor, values_nxTxW: Tensor) -> Tensor:
    """Of a row with each of n others, item by item, [n, T]."""
    if len(values_nxTxW) == 1:
        dots: Tensor = torch.linalg.vecdot(row_TxW, values_nxTxW[0])
        return dots[None]
    return torch.bmm(row_TxW[:, None], values_nxTxW.permute(1, 2, 0))[:, 0].t()


def _weighted_sum(weights_nxM: Tensor, values_nxMxD: Tensor, out: Tensor | None = None) -> Tensor:
    """sum over n of weights times values, [M, D]: faster than torch.bmm on products this thin."""
    total = torch.mul(values_nxMxD[0], weights_nxM[0, :, None], out=out)
    for k in range(1, len(values_nxMxD)):
        total.addcmul_(values_nxMxD[k], weights_nxM[k, :, None])
    return total
