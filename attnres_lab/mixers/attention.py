"""Softmax attention.

Shapes: B batch, T time, D width, H query heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnres_lab.mixers.base import Mixer, MixerConfig, State, Trunk, head_width
from attnres_lab.mixers.rope import RopeConfig, rope_angles, rotate


@dataclass(frozen=True)
class AttentionConfig(MixerConfig):
    """Heads, base of the rotary positions and QK-norm are the model's."""

    separable: ClassVar[bool] = True
    section: ClassVar[str] = "model.mixers.attention"
    head_dim: int | None = None  # None: dim / num_heads
    bias: bool = False  # of queries, keys and values
    window: int | None = None  # a position sees this many, itself included; None: all before it
    output_gate: bool = False  # times sigmoid(W x), before the last projection
    causal: bool = True  # false: all positions see each other, for images
    rope: RopeConfig = field(default_factory=RopeConfig)

    def build(self, trunk: Trunk) -> Attention:
        return Attention(self, trunk)

    def check(self, trunk: Trunk) -> None:
        for key in ("head_dim", "window"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{self.section}.{key}: {value} is not positive; leave it out")
        if self.window is not None and not self.causal:
            raise ValueError(
                f"{self.section}.window: it looks back only, and there is no back without "
                f"{self.section}.causal; leave one out"
            )
        width = head_width(trunk, trunk.num_heads, self.head_dim, "num_heads")
        self.rope.check(width, f"{self.section}.rope")
        if trunk.kv_heads < 1 or trunk.num_heads % trunk.kv_heads:
            raise ValueError(
                f"model.num_kv_heads: {trunk.kv_heads} does not divide model.num_heads = "
                f"{trunk.num_heads}; take a divisor, or leave it out"
            )


@dataclass(frozen=True)
class LocalConfig(AttentionConfig):
    """Softmax attention once more, with options of its own, for the layers that differ: those with
    a window, or with positions.
    """

    section: ClassVar[str] = "model.mixers.local"


class Attention(Mixer):
    """Grouped-query self-attention with rotary positions. Decoding keeps keys and values."""

    kind = "attention"
    extends = True

    def __init__(self, c: AttentionConfig, trunk: Trunk) -> None:
        super().__init__()
        self.c, self.heads, self.kv_heads = c, trunk.num_heads, trunk.kv_heads
        self.theta = trunk.rope_theta
        self.width = head_width(trunk, self.heads, c.head_dim, "num_heads")
        inner = self.heads * self.width
        self.norm = nn.RMSNorm(trunk.dim, eps=trunk.norm_eps)
        self.q = nn.Linear(trunk.dim, inner, bias=c.bias)
        self.kv = nn.Linear(trunk.dim, 2 * self.kv_heads * self.width, bias=c.bias)
        self.out = nn.Linear(inner, trunk.dim, bias=False)
        self.gate = nn.Linear(trunk.dim, inner, bias=False) if c.output_gate else None
        self.q_norm, self.k_norm = (
            nn.RMSNorm(self.width, eps=trunk.norm_eps) if trunk.qk_norm else nn.Identity()
            for _ in range(2)
        )

    def forward(
        self,
        x_BTD: Tensor,
        past: int = 0,
        state: State | None = None,
        *,
        kv_BTD: tuple[Tensor, Tensor] | None = None,
        values: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """As every mixer's. ``kv_BTD`` are inputs of their own for keys and for values, under the
        same norm; ``values`` maps the values [B, K, T, E] to those that are attended to and cached.
        """
        B, T, _ = x_BTD.shape
        x_BTD = self.norm(x_BTD)
        q_BHTE = self.q(x_BTD).view(B, T, self.heads, -1).transpose(1, 2)
        kv = self.kv(x_BTD) if kv_BTD is None else self._project(*map(self.norm, kv_BTD))
        k_BKTE, v_BKTE = kv.view(B, T, 2, self.kv_heads, -1).permute(2, 0, 3, 1, 4)
        if values is not None:
            v_BKTE = values(v_BKTE)
        q_BHTE, k_BKTE = self._turn(self.q_norm(q_BHTE), self.k_norm(k_BKTE), past)
        window = self.c.window
        if state is not None:
            keep = None if window is None else window - 1  # of those the next token sees
            k_BKTE = state.extend("k", k_BKTE, 2, keep)
            v_BKTE = state.extend("v", v_BKTE, 2, keep)
        if self.c.causal:
            y_BHTE = attend(q_BHTE, k_BKTE, v_BKTE, window)
        else:
            gqa = self.kv_heads != self.heads
            y_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, enable_gqa=gqa)
        y_BTP = y_BHTE.transpose(1, 2).reshape(B, T, -1)
        if self.gate is not None:
            y_BTP = y_BTP * self.gate(x_BTD).sigmoid()
        out: Tensor = self.out(y_BTP)
        return out

    def _project(self, k_BTD: Tensor, v_BTD: Tensor) -> Tensor:
        """Keys and values of inputs of their own, beside each other as ``kv`` has them."""
        if type(self.kv) is not nn.Linear:  # with an adapter it is more than its weights
            return torch.cat([self.kv(x).chunk(2, -1)[n] for n, x in enumerate((k_BTD, v_BTD))], -1)
        (k, v), b = self.kv.weight.chunk(2), self.kv.bias
        k_bias, v_bias = (None, None) if b is None else b.chunk(2)
        return torch.cat([F.linear(k_BTD, k, k_bias), F.linear(v_BTD, v, v_bias)], -1)

    def _turn(self, q_BHTE: Tensor, k_BKTE: Tensor, past: int) -> tuple[Tensor, Tensor]:
        rope, width = self.c.rope, self.c.rope.width(self.width)
        if not width:
            return q_BHTE, k_BKTE
        positions = range(past, past + q_BHTE.shape[2])
        angles = rope_angles(rope, width, self.theta, positions, q_BHTE.device)
        return rotate(q_BHTE, angles, rope.amplitude), rotate(k_BKTE, angles, rope.amplitude)

    def flops_per_token(self, seq_len: int) -> int:
        """Scores counted in full, whatever the window."""
        D, inner = self.q.in_features, self.heads * self.width
        products = D * (3 if self.gate is not None else 2) * inner + D * self.kv.out_features
        return 2 * products + 4 * seq_len * inner


#: Pairs of a query and a key whose mask is held at once.
PAIRS = 2**26


def attend(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, window: int | None = None) -> Tensor:
    """Causal attention of the last T of S positions to all before them, [B, H, T, E]. A long piece
    after a long past goes query by query, so that its mask stays small.
    """
    T, S = q_BHTE.shape[2], k_BKSE.shape[2]
    rows = T if T == S and not window else max(1, PAIRS // S)
    parts = []
    for first in range(0, T, rows):
        last = min(first + rows, T)
        seen = S - T + last
        mask = visible(last - first, seen, window, q_BHTE.device)
        part = F.scaled_dot_product_attention(
            q_BHTE[:, :, first:last],
            k_BKSE[:, :, :seen],
            v_BKSE[:, :, :seen],
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=k_BKSE.shape[1] != q_BHTE.shape[1],
        )
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys the last ``queries`` positions see, [queries, keys]; None where all positions are
    there and causality says it all.
    """
    if queries == keys and (window is None or window >= keys):
        return None
    at = torch.arange(keys - queries, keys, device=device)[:, None]
    of = torch.arange(keys, device=device)
    seen = of <= at
    return seen if window is None else seen & (of > at - window)
