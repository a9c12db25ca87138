"""Gated residual streams, as in the released model qwen4_exp of transformers 5.24.

Shapes: B batch, T time, N streams, D width, R rank of the gates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer, exact
from attnres_lab.residual.hyper import check_streams


@dataclass(frozen=True)
class GatedConfig(ResidualConfig):
    """``rank``: of the maps from the streams to the gates."""

    name: str = "gated"
    streams: int = 4
    rank: int | None = None  # None: 5/32 of the width, the released model's ratio (320 of 2048)

    @property
    def label(self) -> str:
        return (
            "gated"
            + (f"-n{self.streams}" if self.streams != 4 else "")
            + (f"-r{self.rank}" if self.rank is not None else "")
        )

    def check(self, num_sublayers: int, dim: int) -> None:
        check_streams(self.streams)
        if self.rank is not None and not 1 <= self.rank <= self.streams * dim:
            raise ValueError(
                f"model.residual.rank: {self.rank} is not within 1 and {self.streams * dim}, the "
                "width of all streams"
            )


class GatedSite(nn.Module):
    """The read of one sublayer and, but for the output, its write.

    With n = vec of the N streams, each RMS-normalised, times a gain: gate = sigmoid(up silu(down n
    / N)), h = mean of gate * n over the streams, write = 2 sigmoid(inject n / N). At the start up
    and inject are zero: gates of 1/2 and writes of 1 over equal streams are the baseline. Down
    cannot be zero as well, or neither would ever get a gradient; without random numbers it starts
    as the first R cosines over the N D channels, orthonormal rows. The gain starts at 3/2 on stream
    l mod N of sublayer l and 1/2 elsewhere, not at ones: with equal reads the N streams would stay
    copies of one, and over equal streams any gains are the baseline.
    """

    def __init__(
        self, config: GatedConfig, index: int, dim: int, norm_eps: float, writes: bool
    ) -> None:
        super().__init__()
        self.streams, self.norm_eps = config.streams, norm_eps
        width, rank = self.streams * dim, config.rank or max(1, 5 * dim // 32)
        first = torch.eye(self.streams)[index % self.streams]
        self.gain = nn.Parameter((first + 0.5)[:, None].repeat(1, dim))
        angles = torch.outer(torch.arange(1, rank + 1), torch.arange(width) + 0.5) * math.pi / width
        self.down = nn.Parameter(angles.cos() * (2 / width) ** 0.5)
        self.up = nn.Parameter(torch.zeros(width, rank))
        self.inject = nn.Parameter(torch.zeros(self.streams, width)) if writes else None

    def forward(self, h_BTND: Tensor) -> tuple[Tensor, Tensor | None]:
        """The sublayer's input [B, T, D], and the weights [B, T, N] of its output."""
        normed_BTND = F.rms_norm(h_BTND, h_BTND.shape[-1:], eps=self.norm_eps) * self.gain
        flat = normed_BTND.flatten(-2)
        gate = F.linear(F.silu(F.linear(flat, self.down) / self.streams), self.up).sigmoid()
        read_BTD = (gate.view_as(normed_BTND) * normed_BTND).mean(-2)
        if self.inject is None:
            return read_BTD, None
        return read_BTD, 2 * (F.linear(flat, self.inject) / self.streams).sigmoid()


class GatedStreams(Residual):
    """N copies of the embedding; h = gated mean of the normalised streams, then H_n <- H_n +
    write_n f(h). The output is one more gated mean. As in all variants the sublayer's own PreNorm
    follows; the released model has none there.
    """

    Config = GatedConfig

    def __init__(self, config: GatedConfig, num_sublayers: int, dim: int, norm_eps: float) -> None:
        super().__init__(config, num_sublayers, dim, norm_eps)
        self.sites = nn.ModuleList(
            GatedSite(config, index, dim, norm_eps, writes=index < num_sublayers)
            for index in range(num_sublayers + 1)
        )

    def start(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unsqueeze(-2).expand(*x_BTD.shape[:-1], self.config.streams, -1)

    def step(self, state: Tensor, sublayer: Sublayer, index: int) -> Tensor:
        with exact(state):
            h_BTD, write_BTN = self.sites[index](state)
        out_BTD = sublayer(h_BTD)
        with exact(state):
            streams_BTND: Tensor = state + write_BTN.unsqueeze(-1) * out_BTD.unsqueeze(-2)
        return streams_BTND

    def finish(self, state: Tensor) -> Tensor:
        with exact(state):
            h_BTD: Tensor = self.sites[-1](state)[0]
        return h_BTD

    def flops_per_token(self) -> int:
        # the two maps of each gate, and where there is one that of the write
        maps = ("down", "up", "inject")
        return sum(2 * p.numel() for n, p in self.named_parameters() if n.endswith(maps))
