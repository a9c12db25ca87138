"""The dense gated MLP. Shapes: B batch, T time, D width, F MLP width."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from attnres_lab.mixers.base import Mixer, MixerConfig, State, Trunk


@dataclass(frozen=True)
class MLPConfig(MixerConfig):
    """Base of all channel mixers' configs; ``name`` is the registry key."""

    name: str = ""

    def at(self, layer: int) -> MLPConfig:
        """The channel mixer of this layer (from 0)."""
        return self


@dataclass(frozen=True)
class SwiGLUConfig(MLPConfig):
    """Its width is the model's ``mlp_dim``."""

    name: str = "swiglu"

    def build(self, trunk: Trunk) -> SwiGLU:
        return SwiGLU(trunk)


class SwiGLU(Mixer):
    """W_out (silu(W_gate x) * W_up x)."""

    kind = "mlp"

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(trunk.dim, eps=trunk.norm_eps)
        self.gate_up = nn.Linear(trunk.dim, 2 * trunk.hidden_dim, bias=False)
        self.out = nn.Linear(trunk.hidden_dim, trunk.dim, bias=False)

    def forward(self, x_BTD: Tensor, past: int = 0, state: State | None = None) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(self.norm(x_BTD)).chunk(2, -1)
        out: Tensor = self.out(F.silu(gate_BTF) * up_BTF)
        return out

    def flops_per_token(self, seq_len: int) -> int:
        return 2 * (self.gate_up.weight.numel() + self.out.weight.numel())
