"""MUDDFormer: multiway dynamic dense connections (arXiv 2502.12170, section 2 and the authors'
code).

Shapes: B batch, T time, D width, S sources (the embedding and the layers so far), W ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer, exact


@dataclass(frozen=True)
class MUDDConfig(ResidualConfig):
    """``ways: r`` makes one stream, which attention reads too, of the four for queries, keys,
    values and the residual. ``norms``: the paper's PrePostDANorm (equation 10).
    """

    name: str = "mudd"
    ways: Literal["qkvr", "r"] = "qkvr"
    norms: bool = False

    @property
    def label(self) -> str:
        return "mudd" + ("-r" if self.ways == "r" else "") + ("-ppn" if self.norms else "")

    @property
    def needs_attention(self) -> bool:
        return self.ways == "qkvr"


class MUDDState(NamedTuple):
    """The streams that the next layer reads, the residual one last; and the sources, normalised
    where the config says so.
    """

    streams: tuple[Tensor, ...]
    sources: tuple[Tensor, ...]


class Aggregate(nn.Module):
    """What the layer behind the sources reads: a weighted sum of them for every way, with weights
    GELU(RMSNorm(X) W1) W2 + a, X the newest layer's output.

    W2 starts at zero, and a one-hot on the newest source; with ``norms`` a too is zero, and X is
    added in any case. W1 is drawn, std 1/sqrt(D).
    """

    def __init__(self, config: MUDDConfig, ways: int, sources: int, dim: int, eps: float) -> None:
        super().__init__()
        self.ways, self.eps = ways, eps
        hidden = len(config.ways) * sources  # also where the last layer has one way
        self.w1 = nn.Parameter(torch.zeros(dim, hidden))
        self.w2 = nn.Parameter(torch.zeros(hidden, ways * sources))
        newest = torch.zeros(ways, sources)
        newest[:, -1] = 0.0 if config.norms else 1.0
        self.static = nn.Parameter(newest)
        # so small that the gain on what is zero at the start is about 1 at eps 1e-6
        self.post_gain = nn.Parameter(torch.full((dim,), 1e-3)) if config.norms else None

    def forward(self, x_BTD: Tensor, sources: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        unit_BTD = F.rms_norm(x_BTD, x_BTD.shape[-1:], eps=self.eps)
        moves = F.gelu(unit_BTD @ self.w1) @ self.w2
        weights_BTWS = moves.view(*moves.shape[:-1], *self.static.shape) + self.static
        mixed: tuple[Tensor, ...] = (weights_BTWS @ torch.stack(sources, -2)).unbind(-2)
        if self.post_gain is None:
            return mixed
        # the authors' code normalises the residual way only
        last_BTD = F.rms_norm(mixed[-1], self.post_gain.shape, self.post_gain, self.eps)
        return tuple(x_BTD + y_BTD for y_BTD in (*mixed[:-1], last_BTD))


class MUDD(Residual):
    """A layer is h = R + attention(Q, K, V), X = h + MLP(h); its streams are aggregated from the
    embedding and all layers' X before their own aggregation. The last aggregate, of the residual
    way, is the output.
    """

    Config = MUDDConfig

    def __init__(self, config: MUDDConfig, num_sublayers: int, dim: int, norm_eps: float) -> None:
        super().__init__(config, num_sublayers, dim, norm_eps)
        layers = num_sublayers // 2
        self.aggregates = nn.ModuleList(
            Aggregate(config, len(config.ways) if layer < layers else 1, layer + 1, dim, norm_eps)
            for layer in range(1, layers + 1)
        )
        self.pre_gain = nn.Parameter(torch.ones(layers + 1, dim)) if config.norms else None

    def draw(self, generator: torch.Generator) -> None:
        """W1 of every aggregate: at zero beside W2 at zero neither would ever get a gradient."""
        for aggregate in self._each():
            nn.init.normal_(aggregate.w1, std=self.dim**-0.5, generator=generator)

    def _each(self) -> list[Aggregate]:
        return list(self.aggregates)  # type: ignore[arg-type]

    def start(self, x_BTD: Tensor) -> MUDDState:
        return MUDDState((x_BTD,), (self._source(x_BTD, 0),))

    def step(self, state: MUDDState, sublayer: Sublayer, index: int) -> MUDDState:
        *apart, stream = state.streams
        if index % 2 == 0:
            if apart:
                query, key, value = apart
                return state._replace(streams=(stream + sublayer(query, kv_BTD=(key, value)),))
            return state._replace(streams=(stream + sublayer(stream),))
        x_BTD = stream + sublayer(stream)
        layer = (index + 1) // 2
        with exact(x_BTD):
            sources = (*state.sources, self._source(x_BTD, layer))
            return MUDDState(self._each()[layer - 1](x_BTD, sources), sources)

    def _source(self, x_BTD: Tensor, layer: int) -> Tensor:
        if self.pre_gain is None:
            return x_BTD
        with exact(x_BTD):
            return F.rms_norm(x_BTD, x_BTD.shape[-1:], self.pre_gain[layer], self.norm_eps)

    def carry(self, state: MUDDState, index: int) -> dict[str, Tensor]:
        sources = {f"source{n}": source for n, source in enumerate(state.sources)}
        streams = {f"stream{n}@{index}": stream for n, stream in enumerate(state.streams)}
        return sources | streams

    def resume(self, tensors: Mapping[str, Tensor], index: int) -> MUDDState:
        sources = tuple(tensors[f"source{n}"] for n in range(1 + index // 2))
        count = len(tensors) - len(sources)
        return MUDDState(tuple(tensors[f"stream{n}@{index}"] for n in range(count)), sources)

    def finish(self, state: MUDDState) -> Tensor:
        return state.streams[-1]

    def flops_per_token(self) -> int:
        """Of each aggregate W1, W2, and the weighted sums."""
        return sum(
            2 * (a.w1.numel() + a.w2.numel() + a.static.numel() * self.dim) for a in self._each()
        )
