"""Kimi Delta Attention (arXiv 2510.26692) as a sublayer; the recurrence is in ops/kda.py.

Shapes: B batch, T time, D width, H heads, K head width (of keys and values), P = H K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnres_lab.mixers.base import (
    Mixer,
    MixerConfig,
    State,
    Trunk,
    draw,
    exact,
    head_width,
    wide,
)
from attnres_lab.ops import kda_chunked
from attnres_lab.ops.kda import kda

#: Of the norms of queries, keys and heads, as in the released models.
UNIT_EPS, HEAD_EPS = 1e-6, 1e-5


@dataclass(frozen=True)
class KDAConfig(MixerConfig):
    """``bounded`` decay and ``full`` gate are Kimi K3's (arXiv 2607.24653)."""

    heads: int | None = None  # None: the model's num_heads
    head_dim: int | None = None  # None: dim / heads
    conv: int = 4  # positions that the convolution sees
    decay: Literal["softplus", "bounded"] = "softplus"  # bounded: at most 5 per position
    gate: Literal["low_rank", "full"] = "low_rank"  # low rank: that of head_dim

    def build(self, trunk: Trunk) -> KDA:
        return KDA(self, trunk)

    def check(self, trunk: Trunk) -> None:
        for key in ("heads", "head_dim", "conv"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"model.mixers.kda.{key}: {value} is not positive")
        key = "num_heads" if self.heads is None else "mixers.kda.heads"
        head_width(trunk, self.heads or trunk.num_heads, self.head_dim, key)


class KDA(Mixer):
    """Linear attention with a memory [K, K] per head. Decoding keeps it and the last inputs of the
    convolution: as much at any length.
    """

    kind = "attention"

    def __init__(self, c: KDAConfig, trunk: Trunk) -> None:
        super().__init__()
        D = trunk.dim
        self.c, self.heads = c, c.heads or trunk.num_heads
        self.width = K = head_width(trunk, self.heads, c.head_dim, "mixers.kda.heads")
        P = self.heads * K
        self.norm = nn.RMSNorm(D, eps=trunk.norm_eps)
        self.qkv = nn.Linear(D, 3 * P, bias=False)
        # by channel, then position; flat, since to an optimiser it is no matrix
        self.conv = nn.Parameter(torch.empty(3 * P * c.conv))
        self.decay_down = nn.Linear(D, K, bias=False)
        self.decay_up = nn.Linear(K, P, bias=False)
        self.log_rate = nn.Parameter(torch.empty(self.heads))  # A_log
        self.decay_bias = nn.Parameter(torch.empty(P))  # dt_bias
        self.beta = nn.Linear(D, self.heads, bias=False)
        low = c.gate == "low_rank"
        self.gate_down = nn.Linear(D, K, bias=False) if low else nn.Identity()
        self.gate_up = nn.Linear(K if low else D, P, bias=False)
        self.gain = nn.Parameter(torch.ones(K))
        self.out = nn.Linear(P, D, bias=False)

    def init_weights(self, generator: torch.Generator, num_sublayers: int) -> None:
        """Rates of decay: exp(log_rate) in U(1, 16); softplus(decay_bias) log-uniform between 1e-3
        and 1e-1.
        """
        super().init_weights(generator, num_sublayers)
        draw(self.conv, self.c.conv, generator)
        with torch.no_grad():
            self.log_rate.uniform_(1, 16, generator=generator).log_()
            step = self.decay_bias.uniform_(math.log(1e-3), math.log(1e-1), generator=generator)
            step.exp_()
            step.copy_(step + (-torch.expm1(-step)).log())  # the inverse of softplus

    def forward(self, x_BTD: Tensor, past: int = 0, state: State | None = None) -> Tensor:
        x_BTD = self.norm(x_BTD)
        qkv_BTP = self._convolve(self.qkv(x_BTD), state)
        q, k, v = (self._heads(part) for part in qkv_BTP.chunk(3, -1))
        change_BTP = self.decay_up(self.decay_down(x_BTD))
        beta_BTH = self.beta(x_BTD)
        with exact(x_BTD):
            q, k, v = _unit(wide(q)) * self.width**-0.5, _unit(wide(k)), wide(v)
            beta_BHT = wide(beta_BTH).sigmoid().transpose(1, 2)
            memory = None if state is None else state.get("memory")
            out_BHTK, memory = kda(q, k, v, self.log_decay(change_BTP), beta_BHT, memory)
            if state is not None:
                state["memory"] = memory
            out_BHTK = F.rms_norm(out_BHTK, (self.width,), wide(self.gain), HEAD_EPS)
            out_BTP = out_BHTK.transpose(1, 2).flatten(2)
        gate_BTP = wide(self.gate_up(self.gate_down(x_BTD))).sigmoid()
        out: Tensor = self.out((out_BTP * gate_BTP).to(x_BTD.dtype))
        return out

    def log_decay(self, change_BTP: Tensor) -> Tensor:
        """Log decay per key channel, [B, H, T, K], at most 0."""
        change_BHTK = self._heads(wide(change_BTP) + wide(self.decay_bias))
        rate_H11 = wide(self.log_rate).exp()[:, None, None]
        if self.c.decay == "bounded":
            return -5 * (rate_H11 * change_BHTK).sigmoid()
        return -rate_H11 * F.softplus(change_BHTK)

    def _convolve(self, x_BTP: Tensor, state: State | None) -> Tensor:
        """silu of a causal convolution of each channel by itself."""
        B, _, P = x_BTP.shape
        before = x_BTP.new_zeros(B, self.c.conv - 1, P)
        if state is not None:
            before = state.get("conv", before)
        x_BTP = torch.cat([before, x_BTP], 1)
        if state is not None:
            state["conv"] = x_BTP[:, x_BTP.shape[1] - self.c.conv + 1 :]
        return F.silu(F.conv1d(x_BTP.mT, self.conv.view(P, 1, -1), groups=P)).mT

    def _heads(self, x_BTP: Tensor) -> Tensor:
        B, T, _ = x_BTP.shape
        return x_BTP.reshape(B, T, self.heads, -1).transpose(1, 2)

    def flops_per_token(self, seq_len: int) -> int:
        """Of the chunked form, for whole chunks; the triangular solve is not counted."""
        heads = self.heads * kda_chunked.flops_per_token(self.width, self.width)
        return self.weight_flops() + heads

    def weight_flops(self) -> int:
        products = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        return 2 * (products + self.conv.numel())


def _unit(x: Tensor) -> Tensor:
    return x * (x.square().sum(-1, keepdim=True) + UNIT_EPS).rsqrt()
