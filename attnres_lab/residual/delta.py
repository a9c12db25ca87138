"""Delta Attention Residuals (arXiv 2605.18855): the residual stream plus what depth attention
selects from the sublayer outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnres_lab import ops
from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer


@dataclass(frozen=True)
class DeltaConfig(ResidualConfig):
    """No options."""

    name: str = "delta"


class DeltaState(NamedTuple):
    """The stream, its summands so far (the embedding first), and one query and key gain per
    read.
    """

    stream: Tensor
    sources: tuple[Tensor, ...]
    query: tuple[Tensor, ...]
    gain: tuple[Tensor, ...]


class Delta(Residual):
    """h_l = stream_l + sum_i alpha_{i->l} v_i, with stream_l the plain sum and alpha as in Full
    AttnRes.

    Choices: the embedding is a source, as in the authors' code; the first sublayer reads the stream
    alone; the output is the stream, without a read. Queries start at zero, unlike the paper's: then
    the selected mean is stream / l, parallel to the stream, and the start is the baseline. The form
    per sublayer; the paper's block form is not here.
    """

    Config = DeltaConfig

    def __init__(self, config: DeltaConfig, num_sublayers: int, dim: int, norm_eps: float) -> None:
        super().__init__(config, num_sublayers, dim, norm_eps)
        self.pseudo_query = nn.Parameter(torch.zeros(num_sublayers - 1, dim))
        self.key_gain = nn.Parameter(torch.ones(num_sublayers - 1, dim))

    def start(self, x_BTD: Tensor) -> DeltaState:
        return DeltaState(x_BTD, (x_BTD,), self.pseudo_query.unbind(), self.key_gain.unbind())

    def step(self, state: DeltaState, sublayer: Sublayer, index: int) -> DeltaState:
        # sources of a read share their dtype
        out_BTD = sublayer(self._hidden(state, index)).to(state.stream.dtype)
        return state._replace(stream=state.stream + out_BTD, sources=(*state.sources, out_BTD))

    def finish(self, state: DeltaState) -> Tensor:
        return state.stream

    def _hidden(self, state: DeltaState, index: int) -> Tensor:
        if index == 0:
            return state.stream
        read = (state.sources, state.query[index - 1], state.gain[index - 1], self.norm_eps)
        if self.observer is not None:
            with torch.no_grad():
                self.observer(
                    index,
                    ("embedding", *(f"f{n}" for n in range(1, index + 1))),
                    ops.depth_weights(*read),
                )
        return state.stream + ops.depth_attention(*read)

    def flops_per_token(self) -> int:
        # sublayer ``index`` reads index + 1 sources: a logit and a weighted value each
        return sum(4 * self.dim * (index + 1) for index in range(1, self.num_sublayers))
