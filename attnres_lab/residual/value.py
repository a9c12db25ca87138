"""Value residual learning: values are mixed with those of the first layer (ResFormer, arXiv
2410.17897).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer, exact


@dataclass(frozen=True)
class ValueConfig(ResidualConfig):
    """``weight`` is that of the first layer's values at the start: 0 is the baseline, 0.5 the
    paper's.
    """

    name: str = "value"
    weight: float = 0.0

    @property
    def label(self) -> str:
        return "value" + (f"-w{self.weight:g}" if self.weight else "")

    @property
    def needs_attention(self) -> bool:
        return True

    def check(self, num_sublayers: int, dim: int) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"model.residual.weight: {self.weight} is not within 0 and 1")
        if num_sublayers < 4:
            raise ValueError(
                "model.residual.name: in a model of one layer there is nothing to mix; take "
                "baseline, or model.num_layers from 2 on"
            )


class ValueState(NamedTuple):
    """The stream, and the values [B, K, T, E] of the first layer once they are known."""

    stream: Tensor
    first: Tensor | None


class ValueResidual(Residual):
    """V_n <- l1 V_n + l2 V_1 in every layer n from the second on, V_n = norm(h) W_n; two learned
    numbers per layer, 1 - ``weight`` and ``weight`` at the start. The stream is the PreNorm
    residual.
    """

    Config = ValueConfig

    def __init__(self, config: ValueConfig, num_sublayers: int, dim: int, norm_eps: float) -> None:
        super().__init__(config, num_sublayers, dim, norm_eps)
        self.starts_as_baseline = config.weight == 0  # else values are mixed from the start
        start = torch.tensor([1 - config.weight, config.weight])
        self.lambdas = nn.Parameter(start.repeat(num_sublayers // 2 - 1, 1))

    def start(self, x_BTD: Tensor) -> ValueState:
        return ValueState(x_BTD, None)

    def step(self, state: ValueState, sublayer: Sublayer, index: int) -> ValueState:
        stream, first = state
        if index % 2:
            return ValueState(stream + sublayer(stream), first)
        seen: list[Tensor] = []

        def values(v_BKTE: Tensor) -> Tensor:
            seen.append(v_BKTE)
            return v_BKTE if first is None else self._mix(v_BKTE, first, index // 2)

        stream = stream + sublayer(stream, values=values)
        return ValueState(stream, seen[0] if first is None else first)

    def _mix(self, v_BKTE: Tensor, first_BKTE: Tensor, layer: int) -> Tensor:
        own, back = self.lambdas[layer - 1]
        with exact(v_BKTE):
            mixed: Tensor = own * v_BKTE.to(own.dtype) + back * first_BKTE.to(own.dtype)
        return mixed.to(v_BKTE.dtype)

    def carry(self, state: ValueState, index: int) -> dict[str, Tensor]:
        assert state.first is not None  # known after the first sublayer
        first = state.first.to(state.stream.dtype)
        return {"values": first, f"stream@{index}": state.stream}

    def resume(self, tensors: Mapping[str, Tensor], index: int) -> ValueState:
        return ValueState(tensors[f"stream@{index}"], tensors["values"])

    def finish(self, state: ValueState) -> Tensor:
        return state.stream
