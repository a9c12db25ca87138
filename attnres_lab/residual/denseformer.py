"""DenseFormer: depth-weighted averages of the layers' outputs (arXiv 2402.02622)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer, exact


@dataclass(frozen=True)
class DenseFormerConfig(ResidualConfig):
    """Counted in layers (attention and MLP together), as in the paper: its 4x5 is dilation 4,
    period 5.
    """

    name: str = "denseformer"
    dilation: int = 1
    period: int = 1

    @property
    def label(self) -> str:
        return (
            "denseformer"
            if (self.dilation, self.period) == (1, 1)
            else f"denseformer-{self.dilation}x{self.period}"
        )

    def check(self, num_sublayers: int, dim: int) -> None:
        for key in ("dilation", "period"):
            if not 1 <= getattr(self, key) <= num_sublayers // 2:
                raise ValueError(
                    f"model.residual.{key}: {getattr(self, key)} is not within 1 and the "
                    f"{num_sublayers // 2} layers"
                )


class DenseFormer(Residual):
    """X_i = sum_j a_ij Y_j after every ``period``-th layer i (from 1): Y_0 the embedding, Y_j the
    output of layer j before its own averaging.

    j runs over i, i - dilation, i - 2 dilation, ... down to 0 at the least, as in the authors'
    code. a is one-hot on j = i at the start, free in sign and not normalised. Between averages the
    stream is the PreNorm residual.
    """

    Config = DenseFormerConfig

    def __init__(
        self, config: DenseFormerConfig, num_sublayers: int, dim: int, norm_eps: float
    ) -> None:
        super().__init__(config, num_sublayers, dim, norm_eps)
        self.averages = nn.ParameterDict()
        for layer in range(config.period, num_sublayers // 2 + 1, config.period):
            one_hot = torch.zeros(layer // config.dilation + 1)
            one_hot[0] = 1.0  # newest first: j = i, i - dilation, ...
            self.averages[str(layer)] = nn.Parameter(one_hot)

    def start(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        return (x_BTD, x_BTD)

    def step(self, state: tuple[Tensor, ...], sublayer: Sublayer, index: int) -> tuple[Tensor, ...]:
        """The state is the stream, then Y_0, Y_1, ..."""
        stream, *outputs = state
        stream = stream + sublayer(stream)
        if index % 2 == 0:
            return (stream, *outputs)
        outputs.append(stream)
        layer = (index + 1) // 2
        if layer % self.config.period == 0:
            with exact(stream):
                stream = torch.einsum(
                    "s,s...->...",
                    self.averages[str(layer)],
                    torch.stack(outputs[:: -self.config.dilation]),
                )
        return (stream, *outputs)

    def carry(self, state: tuple[Tensor, ...], index: int) -> dict[str, Tensor]:
        outputs = {f"layer{n}": output for n, output in enumerate(state[1:])}
        return outputs | {f"stream@{index}": state[0]}

    def resume(self, tensors: Mapping[str, Tensor], index: int) -> tuple[Tensor, ...]:
        outputs = (tensors[f"layer{n}"] for n in range(1 + index // 2))
        return (tensors[f"stream@{index}"], *outputs)

    def finish(self, state: tuple[Tensor, ...]) -> Tensor:
        return state[0]

    def flops_per_token(self) -> int:
        return sum(
            2 * self.dim * len(weights) for weights in self.averages.values() if len(weights) > 1
        )
