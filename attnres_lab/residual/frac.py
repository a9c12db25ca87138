"""Frac-connections: hyper-connections between the parts of one stream (arXiv 2503.14125).

Shapes: B batch, T time, D width, M parts, E = D/M. Matrices over parts are [target, source].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer, exact


@dataclass(frozen=True)
class FracConfig(ResidualConfig):
    """``dynamic``: connections that also depend on the parts, else learned constants."""

    name: str = "frac"
    parts: int = 4
    dynamic: bool = True

    @property
    def label(self) -> str:
        return (
            "frac"
            + (f"-m{self.parts}" if self.parts != 4 else "")
            + ("" if self.dynamic else "-static")
        )

    def check(self, num_sublayers: int, dim: int) -> None:
        if self.parts < 2 or dim % self.parts:
            raise ValueError(
                f"model.residual.parts: {self.parts} is not a divisor of model.dim = {dim} from 2 "
                "on; one part is the baseline"
            )


class FracSite(nn.Module):
    """The connections of one sublayer: M parts are mixed to its input (read), M parts go on (mix),
    and its output is written back part by part (write).

    Constants start as the baseline: read and mix the identity, write ones. The dynamic part is that
    of hyper-connections: scale * tanh(RMSNorm(H_n) W) from each source part n, W zero at the start,
    the two scales (of read and mix, of write) 0.01; the norm has no gain (W would absorb it).
    """

    def __init__(self, config: FracConfig, dim: int, norm_eps: float) -> None:
        super().__init__()
        m = config.parts
        self.parts, self.norm_eps = m, norm_eps
        self.read = nn.Parameter(torch.eye(m))
        self.mix = nn.Parameter(torch.eye(m))
        self.write = nn.Parameter(torch.ones(m))
        # columns: read to each target, mix to each target, write
        self.projection = nn.Parameter(torch.zeros(dim // m, 2 * m + 1)) if config.dynamic else None
        if config.dynamic:
            self.scale = nn.Parameter(torch.full((2,), 0.01))

    def forward(self, h_BTME: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read and mix [..., M, M], write [..., M]."""
        if self.projection is None:
            return self.read, self.mix, self.write
        normed_BTME = nn.functional.rms_norm(h_BTME, h_BTME.shape[-1:], eps=self.norm_eps)
        moves = (normed_BTME @ self.projection).tanh()
        return (
            self.read + self.scale[0] * moves[..., : self.parts].mT,
            self.mix + self.scale[0] * moves[..., self.parts : -1].mT,
            self.write + self.scale[1] * moves[..., -1],
        )


class FracConnections(Residual):
    """h = read H, then H <- mix H + write f(h), with H the stream cut into M contiguous parts."""

    Config = FracConfig

    def __init__(self, config: FracConfig, num_sublayers: int, dim: int, norm_eps: float) -> None:
        super().__init__(config, num_sublayers, dim, norm_eps)
        self.sites = nn.ModuleList(FracSite(config, dim, norm_eps) for _ in range(num_sublayers))

    def start(self, x_BTD: Tensor) -> Tensor:
        return self._cut(x_BTD)

    def step(self, state: Tensor, sublayer: Sublayer, index: int) -> Tensor:
        with exact(state):
            read, mix, write = self.sites[index](state)
            h_BTME = torch.einsum("...mn,...ne->...me", read, state)
        out_BTD = sublayer(h_BTME.flatten(-2))
        with exact(state):
            mixed_BTME = torch.einsum("...mn,...ne->...me", mix, state)
            parts_BTME: Tensor = mixed_BTME + write.unsqueeze(-1) * self._cut(out_BTD)
        return parts_BTME

    def finish(self, state: Tensor) -> Tensor:
        return state.flatten(-2)

    def _cut(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.view(*x_BTD.shape[:-1], self.config.parts, -1)

    def flops_per_token(self) -> int:
        m: int = self.config.parts
        # read and mix; the write is elementwise
        columns = 2 * m + (2 * m + 1 if self.config.dynamic else 0)
        return 2 * self.dim * columns * self.num_sublayers
