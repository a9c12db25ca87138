"""The embedding brought back before every layer, as in nanochat (x0 lambda)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer


@dataclass(frozen=True)
class X0Config(ResidualConfig):
    """No options."""

    name: str = "x0"


class X0State(NamedTuple):
    """The stream, and the embedding."""

    stream: Tensor
    embedding: Tensor


class X0(Residual):
    """h <- l1 h + l2 x_0 before each layer (attention and MLP together), two learned numbers per
    layer; l1 starts at 1, l2 at 0.

    Choice: x_0 is the embedding as it is, where nanochat normalises it first.
    """

    Config = X0Config

    def __init__(self, config: X0Config, num_sublayers: int, dim: int, norm_eps: float) -> None:
        super().__init__(config, num_sublayers, dim, norm_eps)
        start = torch.tensor([1.0, 0.0])
        self.lambdas = nn.Parameter(start.repeat(num_sublayers // 2, 1))

    def start(self, x_BTD: Tensor) -> X0State:
        return X0State(x_BTD, x_BTD)

    def step(self, state: X0State, sublayer: Sublayer, index: int) -> X0State:
        stream, x_BTD = state
        if index % 2 == 0:
            keep, back = self.lambdas[index // 2]
            stream = keep * stream + back * x_BTD
        return X0State(stream + sublayer(stream), x_BTD)

    def carry(self, state: X0State, index: int) -> dict[str, Tensor]:
        return {"embedding": state.embedding, f"stream@{index}": state.stream}

    def resume(self, tensors: Mapping[str, Tensor], index: int) -> X0State:
        return X0State(tensors[f"stream@{index}"], tensors["embedding"])

    def finish(self, state: X0State) -> Tensor:
        return state.stream
