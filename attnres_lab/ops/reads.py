"""Which reads a model makes and how they weigh their sources, as plain values that the fast paths
share.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weighing:
    """How a read weighs its sources; the default is the paper's method (arXiv 2603.15031).

    ``mixing``: softmax or sigmoid of the logits query . key / temperature; ``static``: softmax of
    learned logits, without query and keys. ``heads``: contiguous groups of channels with weights of
    their own. ``key_norm``: keys are RMSNorm(source), over all channels, or the source itself.
    """

    mixing: Literal["softmax", "sigmoid", "static"] = "softmax"
    heads: int = 1
    key_norm: bool = True
    temperature: float = 1.0

    def query(self, pseudo_query: Tensor, key_gain: Tensor | None) -> Tensor:
        """All that a key is multiplied by, [..., D]; or the learned logits, scaled."""
        query = pseudo_query if key_gain is None else pseudo_query * key_gain
        return query if self.temperature == 1 else query / self.temperature

    def weights(self, logits: Tensor) -> Tensor:
        """Of all sources of a read, along the first axis."""
        return logits.sigmoid() if self.mixing == "sigmoid" else logits.softmax(0)


PAPER = Weighing()


@dataclass(frozen=True)
class Reads:
    """Row j is what sublayer j leaves behind: its output, or the sum of its block so far; row 0 is
    the embedding. Read l, from 1, sees the rows that closed a block before it, and row l.

    ``ends``: rows that close a block, the last one included. ``window``: a read sees row 0 and the
    latest rows only (every row closes its block). ``output``: whether there is a read after the
    last row. ``starts``: reads before which phase 1 is done (twophase.py); None: chosen.
    """

    ends: tuple[int, ...]
    eps: float
    weighing: Weighing = PAPER
    window: int | None = None
    output: bool = True
    starts: frozenset[int] | None = None

    @property
    def count(self) -> int:
        """Number of reads."""
        return self.ends[-1] - (not self.output)

    @cached_property
    def closing(self) -> frozenset[int]:
        """Rows that stay sources."""
        return frozenset((0, *self.ends))

    @cached_property
    def phases(self) -> frozenset[int]:
        """Reads before which phase 1 is done: the first of every block, which for Full is every
        read.
        """
        return self.starts or frozenset((1, *self.ends))

    def readers(self, row: int) -> range:
        """Reads that see a row."""
        if row not in self.closing:
            return range(row, row + 1)
        last = self.count if self.window is None or row == 0 else row + self.window - 1
        return range(max(row, 1), min(last, self.count) + 1)

    def first_slot(self, slots: int) -> int:
        """Of ``slots`` rows that closed, the first after row 0 that is in the window."""
        return 1 if self.window is None else max(1, slots - self.window)

    @cached_property
    def seen(self) -> Tensor:
        """Whether a read sees a slot [R, K]."""
        seen = torch.zeros(self.count, len(self.ends) + 1, dtype=torch.bool)
        for index in range(1, self.count + 1):
            slots = sum(end < index for end in self.ends) + 2  # row 0, closed rows, row ``index``
            seen[index - 1, 0] = True
            seen[index - 1, self.first_slot(slots) : slots] = True
        return seen

    def logits(self, scalars: Tensor) -> Tensor:
        """Learned logits, given in one row, by read and slot [R, K]; zero elsewhere."""
        by_slot = scalars.new_zeros(self.seen.shape)
        return by_slot.masked_scatter(self.seen.to(scalars.device), scalars)
