"""The whole network: a decoder-only Transformer with a replaceable residual connection.

Shapes: B batch, T time, D width, H query heads, K key/value heads, E head width, F MLP width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnres_lab.model.init import init_weights
from attnres_lab.residual import REGISTRY, BaselineConfig, ResidualConfig


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the trunk. ``norm_eps`` matters: depth reads shrink h by about 1/sources
    (docs/decisions).
    """

    vocab_size: int = 256
    dim: int = 64
    num_layers: int = 8
    num_heads: int = 4
    num_kv_heads: int | None = None  # None: as many as num_heads
    mlp_dim: int | None = None  # None: 8/3 dim, rounded up to a multiple of 8
    rope_theta: float = 10_000.0
    qk_norm: bool = False
    tie_embeddings: bool = False
    norm_eps: float = 1e-6
    activation_checkpointing: bool = False
    residual: ResidualConfig = field(default_factory=BaselineConfig)

    def __post_init__(self) -> None:
        """Raises ValueError with the key and the remedy."""
        for key in ("vocab_size", "dim", "num_layers", "num_heads"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}: {getattr(self, key)} is not positive")
        if self.dim % self.num_heads:
            raise ValueError(
                f"model.num_heads: {self.num_heads} heads do not divide model.dim = {self.dim}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"model.num_heads: a head is {self.head_dim} wide, RoPE needs an even width"
            )
        if self.kv_heads < 1 or self.num_heads % self.kv_heads:
            raise ValueError(
                f"model.num_kv_heads: {self.kv_heads} does not divide model.num_heads = "
                f"{self.num_heads}"
            )
        if self.norm_eps <= 0:
            raise ValueError(f"model.norm_eps: {self.norm_eps} is not positive")
        self.residual.check(self.num_sublayers, self.dim)

    @property
    def num_sublayers(self) -> int:
        return 2 * self.num_layers

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def hidden_dim(self) -> int:
        return self.mlp_dim or -(-8 * self.dim // 24) * 8

    @property
    def size(self) -> str:
        """What tables and tags call this size."""
        return f"d{self.dim}-L{self.num_layers}"


class KVCache:
    """Keys and values [B, K, T, E] of one attention sublayer, appended to while decoding."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.k = k if self.k is None else torch.cat([self.k, k], 2)
        self.v = v if self.v is None else torch.cat([self.v, v], 2)
        return self.k, self.v

    @property
    def length(self) -> int:
        return 0 if self.k is None else self.k.shape[2]


class Attention(nn.Module):
    """Causal grouped-query self-attention with rotary positions, its PreNorm inside."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.c = c
        self.norm = nn.RMSNorm(c.dim, eps=c.norm_eps)
        self.q = nn.Linear(c.dim, c.dim, bias=False)
        self.kv = nn.Linear(c.dim, 2 * c.kv_heads * c.head_dim, bias=False)
        self.out = nn.Linear(c.dim, c.dim, bias=False)
        self.q_norm = nn.RMSNorm(c.head_dim, eps=c.norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(c.head_dim, eps=c.norm_eps) if c.qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, rope: Tensor, cache: KVCache | None = None) -> Tensor:
        B, T, D = x_BTD.shape
        x_BTD = self.norm(x_BTD)
        q_BHTE = self.q(x_BTD).view(B, T, self.c.num_heads, -1).transpose(1, 2)
        k_BKTE, v_BKTE = self.kv(x_BTD).view(B, T, 2, self.c.kv_heads, -1).permute(2, 0, 3, 1, 4)
        q_BHTE, k_BKTE = rotate(self.q_norm(q_BHTE), rope), rotate(self.k_norm(k_BKTE), rope)
        mask = None
        if cache is not None:
            past = cache.length
            k_BKTE, v_BKTE = cache.append(k_BKTE, v_BKTE)
            if past:  # query t sees keys up to past + t
                mask = torch.ones(T, past + T, dtype=torch.bool, device=x_BTD.device).tril(past)
        y_BHTE = F.scaled_dot_product_attention(
            q_BHTE,
            k_BKTE,
            v_BKTE,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.c.kv_heads != self.c.num_heads,
        )
        out: Tensor = self.out(y_BHTE.transpose(1, 2).reshape(B, T, D))
        return out


class SwiGLU(nn.Module):
    """Gated MLP, its PreNorm inside."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(c.dim, eps=c.norm_eps)
        self.gate_up = nn.Linear(c.dim, 2 * c.hidden_dim, bias=False)
        self.out = nn.Linear(c.hidden_dim, c.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(self.norm(x_BTD)).chunk(2, -1)
        out: Tensor = self.out(F.silu(gate_BTF) * up_BTF)
        return out


class Transformer(nn.Module):
    """Tokens [B, T] to logits [B, T, V]."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = c = config
        self.embed = nn.Embedding(c.vocab_size, c.dim)
        self.sublayers = nn.ModuleList(
            m for _ in range(c.num_layers) for m in (Attention(c), SwiGLU(c))
        )
        self.norm = nn.RMSNorm(c.dim, eps=c.norm_eps)
        self.head = nn.Linear(c.dim, c.vocab_size, bias=False)
        self.residual = REGISTRY[c.residual.name](c.residual, c.num_sublayers, c.dim, c.norm_eps)
        init_weights(self, seed)
        if c.tie_embeddings:
            self.head.weight = self.embed.weight

    def forward(self, tokens_BT: Tensor, caches: list[KVCache] | None = None) -> Tensor:
        x_BTD = self.embed(tokens_BT)
        if self.config.tie_embeddings:
            x_BTD = x_BTD * self.config.dim**0.5  # the shared matrix has the head's scale
        offset = caches[0].length if caches else 0
        rope = rope_angles(self.config, offset, tokens_BT.shape[1], x_BTD.device)
        state = self.residual.start(x_BTD)
        for index, module in enumerate(self.sublayers):
            state = self.residual.step(state, self._sublayer(module, index, rope, caches), index)
        logits: Tensor = self.head(self.norm(self.residual.finish(state)))
        return logits

    def _sublayer(
        self, module: nn.Module, index: int, rope: Tensor, caches: list[KVCache] | None
    ) -> Callable[[Tensor], Tensor]:
        def call(x_BTD: Tensor) -> Tensor:
            if not isinstance(module, Attention):
                return module(x_BTD)  # type: ignore[no-any-return]
            return module(x_BTD, rope, caches[index // 2] if caches else None)  # type: ignore[no-any-return]

        if self.config.activation_checkpointing and self.training:
            return lambda x_BTD: checkpoint(call, x_BTD, use_reentrant=False)
        return call


def rope_angles(c: ModelConfig, offset: int, length: int, device: torch.device) -> Tensor:
    """Angles [T, E/2] of positions ``offset .. offset + length`` (RoPE, arXiv 2104.09864)."""
    frequency = c.rope_theta ** -(
        torch.arange(0, c.head_dim, 2, device=device, dtype=torch.float32) / c.head_dim
    )
    return torch.outer(
        torch.arange(offset, offset + length, device=device, dtype=torch.float32), frequency
    )


def rotate(x_BHTE: Tensor, angles_TE: Tensor) -> Tensor:
    """Rotate the pairs (i, i + E/2) of every head by the position's angles."""
    cos, sin = angles_TE.cos().to(x_BHTE.dtype), angles_TE.sin().to(x_BHTE.dtype)
    a, b = x_BHTE.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
