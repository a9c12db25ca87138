"""A piece of a sequence shared out over processes: each runs the positions of its share.

What depth attention keeps of a position is read by that position alone, so sources, and the merge
of the two phases, stay with their share (arXiv 2603.15031, section 4.2, shards them so over
tensor-parallel devices). Keys and values, or a recurrent state, go to all: at the end of a piece
every process holds the whole cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from attnres_lab.mixers import State


@dataclass(frozen=True)
class Shards:
    """``share`` positions for each process of ``group``, in the order of their ranks in it."""

    group: Any
    share: int

    @property
    def size(self) -> int:
        """Number of processes."""
        return distributed.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Of this process."""
        return distributed.get_rank(self.group)

    @property
    def first(self) -> int:
        """The first of this process's positions in the piece."""
        return self.rank * self.share

    def gather(self, new: Tensor, dim: int) -> tuple[Tensor, int]:
        """The positions of all along ``dim``, and how many of them come after this process's."""
        new = new.contiguous()
        parts = [torch.empty_like(new) for _ in range(self.size)]
        distributed.all_gather(parts, new, self.group)
        return torch.cat(parts, dim), (self.size - 1 - self.rank) * self.share

    def in_turn(self, sublayer: Callable[..., Tensor], state: State) -> Callable[..., Tensor]:
        """``sublayer``, run by one process after the other, each on the state that the one before
        has left; all have the last one's in the end.
        """

        def run(x_BTD: Tensor, **options: Any) -> Tensor:
            out_BTD = x_BTD
            for turn in range(self.size):
                if turn == self.rank:
                    out_BTD = sublayer(x_BTD, **options)
                self._spread(state, turn, x_BTD.device)
            return out_BTD

        return run

    def _spread(self, state: State, turn: int, device: torch.device) -> None:
        """Give the state of process ``turn`` to all."""
        root = self.root(turn)
        kinds: list[Any] = [{name: (x.shape, x.dtype) for name, x in state.items()}]
        distributed.broadcast_object_list(kinds, root, self.group)
        for name, (shape, dtype) in kinds[0].items():
            if turn == self.rank:
                x = state[name].contiguous()
            else:
                x = torch.empty(shape, dtype=dtype, device=device)
            distributed.broadcast(x, root, self.group)
            state[name] = x

    def from_last(self, x: Tensor) -> Tensor:
        """The tensor of the last process, in the shape of ``x``."""
        x = x.clone(memory_format=torch.contiguous_format)
        distributed.broadcast(x, self.root(self.size - 1), self.group)
        return x

    def root(self, rank: int) -> int:
        """The global rank of a process of the group."""
        return distributed.get_global_rank(self.group, rank)
