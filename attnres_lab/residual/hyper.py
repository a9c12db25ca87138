"""Hyper-connections: several residual streams with learned connections (arXiv 2409.19606, section 2
and algorithm 2).

Shapes: B batch, T time, N streams, D width. Matrices over streams are [target, source].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer, exact


class Connections(NamedTuple):
    """How a sublayer reads the streams [..., N], how they mix [..., N, N] (None: not at all), and
    how its output is written [..., N].
    """

    read: Tensor
    mix: Tensor | None
    write: Tensor


class Streams(Residual):
    """N copies of the embedding; h = sum_n read_n H_n, then H <- mix H + write f(h)^T for each
    sublayer; at the end the sum of the streams.
    """

    def __init__(
        self,
        config: ResidualConfig,
        sites: Sequence[nn.Module],
        streams: int,
        dim: int,
        norm_eps: float,
    ) -> None:
        super().__init__(config, len(sites), dim, norm_eps)
        self.streams = streams
        # each maps the streams to the Connections of one sublayer
        self.sites = nn.ModuleList(sites)

    def start(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unsqueeze(-2).expand(*x_BTD.shape[:-1], self.streams, -1)

    def step(self, state: Tensor, sublayer: Sublayer, index: int) -> Tensor:
        with exact(state):
            read, mix, write = self.sites[index](state)
            h_BTD = torch.einsum("...n,...nd->...d", read, state)
        out_BTD = sublayer(h_BTD)
        with exact(state):
            mixed = state if mix is None else torch.einsum("...mn,...nd->...md", mix, state)
            written = write.unsqueeze(-1) * out_BTD.unsqueeze(-2)
        streams_BTND: Tensor = mixed + written
        return streams_BTND

    def finish(self, state: Tensor) -> Tensor:
        return state.sum(-2)


@dataclass(frozen=True)
class HyperConfig(ResidualConfig):
    """``dynamic``: connections that also depend on the streams (the paper's DHC), else learned
    constants (SHC).
    """

    name: str = "hyper"
    streams: int = 4
    dynamic: bool = True

    @property
    def label(self) -> str:
        return (
            "hyper"
            + (f"-n{self.streams}" if self.streams != 4 else "")
            + ("" if self.dynamic else "-static")
        )

    def check(self, num_sublayers: int, dim: int) -> None:
        if self.streams < 2:
            raise ValueError(
                f"model.residual.streams: {self.streams} is fewer than 2; one stream is the "
                "baseline"
            )


class HyperSite(nn.Module):
    """The connections of one sublayer.

    Constants start as PreNorm: read one-hot on stream l mod N, mix the identity, write ones. The
    dynamic part adds scale * tanh(norm(H_n) W) from each source stream n: to read_n, to column n of
    mix, to write_n; W is zero at the start, the two scales (of read and mix, of write) are 0.01.
    Choices: norm is RMSNorm without a gain (W would absorb it) where the paper's code has
    LayerNorm; the paper's smaller initial output projections are left out, since all variants share
    the trunk's weights.
    """

    def __init__(self, config: HyperConfig, index: int, dim: int, norm_eps: float) -> None:
        super().__init__()
        n = config.streams
        self.norm_eps = norm_eps
        self.read = nn.Parameter(torch.eye(n)[index % n])
        self.mix = nn.Parameter(torch.eye(n))
        self.write = nn.Parameter(torch.ones(n))
        # columns: read, mix to each target, write
        self.projection = nn.Parameter(torch.zeros(dim, n + 2)) if config.dynamic else None
        if config.dynamic:
            self.scale = nn.Parameter(torch.full((2,), 0.01))

    def forward(self, h_BTND: Tensor) -> Connections:
        if self.projection is None:
            return Connections(self.read, self.mix, self.write)
        normed_BTND = nn.functional.rms_norm(h_BTND, h_BTND.shape[-1:], eps=self.norm_eps)
        moves = (normed_BTND @ self.projection).tanh()
        read, mix, write = moves[..., 0], moves[..., 1:-1].mT, moves[..., -1]
        return Connections(
            self.read + self.scale[0] * read,
            self.mix + self.scale[0] * mix,
            self.write + self.scale[1] * write,
        )


class HyperConnections(Streams):
    """Hyper-connections, static or dynamic."""

    Config = HyperConfig

    def __init__(self, config: HyperConfig, num_sublayers: int, dim: int, norm_eps: float) -> None:
        super().__init__(
            config,
            [HyperSite(config, index, dim, norm_eps) for index in range(num_sublayers)],
            config.streams,
            dim,
            norm_eps,
        )

    def flops_per_token(self) -> int:
        n = self.streams
        # read and mix; the write is an outer product, no sum
        per_sublayer = 2 * n * self.dim * (1 + n)
        if self.config.dynamic:
            per_sublayer += 2 * n * self.dim * (n + 2)
        return per_sublayer * self.num_sublayers
