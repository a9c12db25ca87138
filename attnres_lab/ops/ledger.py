"""Buffers and arithmetic of the two-phase schedule (twophase.py), without autograd.

Row j is what sublayer j leaves behind: its output (Full), or the sum of its block so far (Block);
row 0 is the embedding. Read l attends to the rows that closed a block before it and to row l
itself. Closed rows lie in one buffer [K, M, D], and

    phase 1   one batched product of the closed rows for the next few reads
              (their queries do not depend on the input)
    phase 2   per read, an online-softmax merge with the rows that have come since
    logits    of a row for all its readers, in one matrix product while it is warm
    backward  a read only files its gradient; a row's gradient, from all its readers at once,
              is formed by its ``_Push`` node, which a chain of empty tensors orders after them

Shapes: M tokens (batch x time), D width, K closed rows, R reads, n readers of one row.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

_spare: list[np.ndarray] = []
_taking = threading.Lock()


def _buffer(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised memory, if possible what the last pass has let go: fresh pages cost more than
    filling them. Four blocks at most are kept.
    """
    size = math.prod(shape) * like.element_size()
    if size < 1 << 20:
        return like.new_empty(shape)
    with _taking:
        for place in range(len(_spare)):
            # the list and this call: no tensor lives in it
            if _spare[place].nbytes == size and sys.getrefcount(_spare[place]) == 2:
                block = _spare.pop(place)
                break
        else:
            block = np.empty(size, np.uint8)
        _spare.append(block)
        del _spare[:-4]
        return torch.from_numpy(block).view(like.dtype).view(shape)


@dataclass
class _BackwardPass:
    """What the reads have filed during one backward pass."""

    task: int
    d_read: Tensor  # [R, M, D] gradients of the reads
    delta: Tensor  # [R, M] gradient . output of each read
    d_query: Tensor  # [R, D]
    filed: set[int] = field(default_factory=set)


class Ledger:
    """Buffers of one forward pass. Holds no tensor with a history: that would be a cycle through
    the graph, never freed.
    """

    def __init__(
        self,
        x: Tensor,
        query_RxD: Tensor,
        ends: Collection[int],
        phases: Collection[int],
        eps: float,
    ) -> None:
        self.shape, self.eps, self.phases = x.shape, x.new_tensor(eps), phases
        self.closing = {0, *ends}  # rows that close a block
        self.query = query_RxD.detach()
        R, D = query_RxD.shape
        M, K = x.numel() // D, len(ends) + 1
        self.values = _buffer(x, K, M, D)
        self.logits = x.new_empty(R, K, M)
        self.lse = x.new_empty(R, M)
        self.row, self.slot = -1, 0  # newest row, and its place in the buffer
        self.newest = self.first = self.first_lse = x
        # which read and how many rows phase 1 was for; whether reads share its result
        self.first_read, self.first_slots, self.shared = (
            0,
            0,
            True,
        )
        self.backward_pass: _BackwardPass | None = None

    def push(self, out: Tensor, partial: Tensor | None) -> tuple[Tensor, Tensor, range]:
        """Add a row: its values [M, D], its inverse rms [M] and its readers."""
        self.slot += self.row in self.closing
        self.row += 1
        out = out.reshape(self.values.shape[1:])
        if self.row in self.closing:
            # with a version counter of its own: later rows are written into the same buffer
            row = self.values[self.slot].data
            row.copy_(out) if partial is None else torch.add(partial, out, out=row)
            readers = range(max(self.row, 1), len(self.lse) + 1)
        else:
            row = out if partial is None else partial + out
            readers = range(self.row, self.row + 1)
        self.newest = row.detach()
        norm = torch.linalg.vector_norm(row, dim=-1)
        inverse_rms = torch.addcmul(self.eps, norm, norm, value=1 / row.shape[-1]).rsqrt_()
        logits = self.logits[_span(readers), self.slot]
        torch.mm(self.query[_span(readers)], row.t(), out=logits)
        logits.mul_(inverse_rms)
        return row, inverse_rms, readers

    def read(self, index: int) -> Tensor:
        """Input of sublayer ``index``, [M, D]."""
        if index in self.phases or not self.first_slots:
            self._phase_one(index)
        place = index - self.first_read
        if self.first_slots > self.slot:  # nothing has come since phase 1
            self.lse[index - 1] = self.first_lse[place]
            return (
                self.first[place].clone(memory_format=torch.contiguous_format)
                if self.shared
                else self.first[place]
            )
        # one row has come: the softmax of two logits is a sigmoid
        if self.first_slots == self.slot:
            near, first = self.logits[index - 1, self.slot], self.first_lse[place]
            torch.logaddexp(first, near, out=self.lse[index - 1])
            return torch.lerp(
                self.first[place], self.newest, torch.sub(near, first).sigmoid_()[:, None]
            )
        merged = torch.cat(
            [self.first_lse[place, None], self.logits[index - 1, self.first_slots : self.slot + 1]]
        )
        torch.logsumexp(merged, 0, out=self.lse[index - 1])
        weights = merged.softmax(0)
        h = self.first[place] * weights[0, :, None]
        for slot in range(self.first_slots, self.slot):
            h.addcmul_(self.values[slot], weights[1 + slot - self.first_slots, :, None])
        return h.addcmul_(self.newest, weights[-1, :, None])

    def _phase_one(self, index: int) -> None:
        """Normalised partial reads of the closed rows, for the reads up to the next phase."""
        closed = self.slot + (self.row in self.closing)
        until = min((phase for phase in self.phases if phase > index), default=len(self.lse) + 1)
        logits = self.logits[index - 1 : until - 1, :closed]
        self.first_lse, self.first_read, self.first_slots = (
            torch.logsumexp(logits, 1),
            index,
            closed,
        )
        self.shared = closed == 1 or len(logits) > 1  # h must not keep the other reads' memory
        if closed == 1:
            self.first = self.values[:1].expand(len(logits), -1, -1)
            return
        weights = (logits - self.first_lse[:, None]).exp_()
        per_token = weights.flatten(0, 1).t().contiguous().view(-1, *weights.shape[:2])
        self.first = torch.bmm(per_token, self.values[:closed].transpose(0, 1)).transpose(0, 1)

    def finish_forward(self) -> None:
        """Let go of the rows: what the backward needs, its nodes have saved, and autograd frees it
        in the usual way.
        """
        del self.values, self.newest, self.first, self.first_lse

    def weights(self, index: int) -> Tensor:
        """Depth weights of a read that has been made, [sources, ...]."""
        return (
            (self.logits[index - 1, : self.slot + 1] - self.lse[index - 1])
            .exp()
            .view(-1, *self.shape[:-1])
        )

    def file(self, index: int, d_read: Tensor, h: Tensor) -> None:
        """Note the gradient of a read."""
        now = self._now()
        d_read = d_read.reshape(h.shape)
        now.d_read[index - 1] = d_read
        torch.sum(d_read * h, -1, out=now.delta[index - 1])
        now.filed.add(index)

    def pull(
        self, row: Tensor, inverse_rms: Tensor, slot: int, readers: range, d_row: Tensor | None
    ) -> Tensor:
        """Gradient [M, D] of a row from all its readers, and from ``d_row``, the sum that goes on;
        adds to the gradient of the queries.
        """
        now, span = self._now(), _span(readers)
        for index in set(readers) - now.filed:  # this backward pass did not come through that read
            now.d_read[index - 1] = now.delta[index - 1] = 0
            now.filed.add(index)
        d_read, logits = now.d_read[span], self.logits[span, slot]
        alpha = (logits - self.lse[span]).exp_()
        one = len(readers) == 1
        dots = (
            torch.linalg.vecdot(row, d_read[0])[None]
            if one
            else torch.bmm(row[:, None], d_read.permute(1, 2, 0))[:, 0].t()
        )
        along_query = dots.sub(now.delta[span]).mul_(alpha).mul_(inverse_rms)
        along_row = (along_query * logits).sum(0).mul_(inverse_rms)
        now.d_query[span].addmm_(along_query, row)
        # open rows have one reader
        gradient = (
            _weighted_sum(alpha, d_read)
            if d_row is None
            else torch.addcmul(d_row, d_read[0], alpha[0, :, None])
        )
        return gradient.addmm_(along_query.t(), self.query[span]).addcmul_(
            row, along_row[:, None], value=-1 / row.shape[-1]
        )

    def finish_backward(self) -> Tensor:
        """Gradient of the queries; the pass is over."""
        d_query, self.backward_pass = self._now().d_query, None
        return d_query

    def _now(self) -> _BackwardPass:
        task = torch._C._current_graph_task_id()
        if self.backward_pass is None or self.backward_pass.task != task:
            R, M = self.lse.shape
            d_read = _buffer(self.lse, R, M, self.query.shape[1])
            self.backward_pass = _BackwardPass(
                task, d_read, torch.empty_like(self.lse), torch.zeros_like(self.query)
            )
        return self.backward_pass


def _span(readers: range) -> slice:
    return slice(readers.start - 1, readers.stop - 1)


def _weighted_sum(weights_nxM: Tensor, values_nxMxD: Tensor) -> Tensor:
    """sum over n of weights times values, [M, D]."""
    n, M, D = values_nxMxD.shape
    if n * D >= 400:  # below that torch.bmm runs a slow loop
        return torch.bmm(
            weights_nxM.as_strided((M, 1, n), (1, 1, M)), values_nxMxD.transpose(0, 1)
        )[:, 0]
    total = values_nxMxD[0] * weights_nxM[0, :, None]
    for k in range(1, n):
        total.addcmul_(values_nxMxD[k], weights_nxM[k, :, None])
    return total
