"""Multi-head latent attention (MLA) without positions, as in Kimi Linear (arXiv 2510.26692).

Shapes: B batch, T time, D width, H heads, E head width, R latent width, S width of the key that all
heads share.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnres_lab.mixers.attention import attend
from attnres_lab.mixers.base import Mixer, MixerConfig, State, Trunk, head_width

#: Of the norms on latents, apart from the model's norm_eps, as in the released models.
LATENT_EPS = 1e-6


@dataclass(frozen=True)
class MLAConfig(MixerConfig):
    """The defaults of the widths are Kimi Linear's ratios to the head width (512, 64 and 128)."""

    head_dim: int | None = None  # of values and of a head's own key; None: dim / num_heads
    latent_dim: int | None = None  # None: 4 head_dim
    shared_dim: int | None = None  # None: half of head_dim
    query_rank: int | None = None  # queries through a latent of this width (Kimi K3); None: no
    output_gate: bool = False  # times sigmoid(W x), before the last projection (Kimi K3)

    def build(self, trunk: Trunk) -> MLA:
        return MLA(self, trunk)

    def check(self, trunk: Trunk) -> None:
        for key in ("head_dim", "latent_dim", "shared_dim", "query_rank"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"model.mixers.mla.{key}: {value} is not positive")
        head_width(trunk, trunk.num_heads, self.head_dim, "num_heads")


class MLA(Mixer):
    """Keys and values of all heads come from one normalised latent; beside it, one key is shared by
    all heads. Nothing is rotated. Decoding keeps latent and shared key.
    """

    kind = "attention"
    extends = True

    def __init__(self, c: MLAConfig, trunk: Trunk) -> None:
        super().__init__()
        D, self.heads = trunk.dim, trunk.num_heads
        self.width = head_width(trunk, self.heads, c.head_dim, "num_heads")
        self.latent_dim = c.latent_dim or 4 * self.width
        self.shared_dim = c.shared_dim or max(1, self.width // 2)
        inner = self.heads * self.width
        queries = inner + self.heads * self.shared_dim
        self.norm = nn.RMSNorm(D, eps=trunk.norm_eps)
        self.q_down: nn.Module = nn.Identity()
        self.q_norm: nn.Module = nn.Identity()
        if c.query_rank:
            self.q_down = nn.Linear(D, c.query_rank, bias=False)
            self.q_norm = nn.RMSNorm(c.query_rank, eps=LATENT_EPS)
        self.q = nn.Linear(c.query_rank or D, queries, bias=False)
        self.latent = nn.Linear(D, self.latent_dim + self.shared_dim, bias=False)
        self.latent_norm = nn.RMSNorm(self.latent_dim, eps=LATENT_EPS)
        self.kv = nn.Linear(self.latent_dim, 2 * inner, bias=False)  # by head: key, value
        self.out = nn.Linear(inner, D, bias=False)
        self.gate = nn.Linear(D, inner, bias=False) if c.output_gate else None

    def forward(self, x_BTD: Tensor, past: int = 0, state: State | None = None) -> Tensor:
        B, T, _ = x_BTD.shape
        x_BTD = self.norm(x_BTD)
        q = self.q(self.q_norm(self.q_down(x_BTD)))
        q_BHTE = q.view(B, T, self.heads, -1).transpose(1, 2)
        latent_BTR, shared_BTS = self.latent(x_BTD).split([self.latent_dim, self.shared_dim], -1)
        latent_BTR = self.latent_norm(latent_BTR)
        if state is not None:
            latent_BTR = state.extend("latent", latent_BTR, 1)
            shared_BTS = state.extend("shared", shared_BTS, 1)
        keys = latent_BTR.shape[1]
        kv_BHTE = self.kv(latent_BTR).view(B, keys, self.heads, -1).transpose(1, 2)
        k_BHTE, v_BHTE = kv_BHTE.chunk(2, -1)
        shared = shared_BTS[:, None].expand(-1, self.heads, -1, -1)
        y_BHTE = attend(q_BHTE, torch.cat([k_BHTE, shared], -1), v_BHTE)
        y_BTP = y_BHTE.transpose(1, 2).reshape(B, T, -1)
        if self.gate is not None:
            y_BTP = y_BTP * self.gate(x_BTD).sigmoid()
        out: Tensor = self.out(y_BTP)
        return out

    def flops_per_token(self, seq_len: int) -> int:
        products = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        return 2 * products + 2 * seq_len * self.heads * (2 * self.width + self.shared_dim)
