"""What a run costs, in one formula each: parameters and exact training FLOPs.

FLOPs are those of the matrix products (a multiply and an add are two), attention scores counted in
full (not halved for causality), as ``torch.utils.flop_counter.FlopCounterMode`` counts them; the
backward pass costs twice the forward. Recomputation is not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from attnres_lab.model.transformer import ModelConfig
from attnres_lab.residual import REGISTRY, Residual


@dataclass(frozen=True)
class Params:
    """Numbers of parameters; ``non_embedding`` is N of the scaling laws (embedding and head left
    out).
    """

    non_embedding: int
    total: int


@lru_cache(maxsize=1024)
def num_params(c: ModelConfig) -> Params:
    """Parameters of a model, without building it."""
    attention = (
        c.dim
        + 2 * c.dim * c.dim
        + 2 * c.dim * c.kv_heads * c.head_dim
        + (2 * c.head_dim if c.qk_norm else 0)
    )
    mlp = c.dim + 3 * c.dim * c.hidden_dim
    residual = sum(p.numel() for p in _residual(c).parameters())
    n = c.num_layers * (attention + mlp) + c.dim + residual
    return Params(n, n + c.vocab_size * c.dim * (1 if c.tie_embeddings else 2))


@lru_cache(maxsize=1024)
def forward_flops_per_token(c: ModelConfig, seq_len: int) -> int:
    """Forward FLOPs per token at ``seq_len``, depth attention included."""
    attention = 2 * (2 * c.dim * c.dim + 2 * c.dim * c.kv_heads * c.head_dim) + 4 * seq_len * c.dim
    mlp = 2 * 3 * c.dim * c.hidden_dim
    head = 2 * c.dim * c.vocab_size
    return c.num_layers * (attention + mlp) + head + _residual(c).flops_per_token()


def training_flops_per_token(c: ModelConfig, seq_len: int) -> int:
    """Forward and backward FLOPs per token."""
    return 3 * forward_flops_per_token(c, seq_len)


def _residual(c: ModelConfig) -> Residual:
    with torch.device("meta"):
        return REGISTRY[c.residual.name](c.residual, c.num_sublayers, c.dim, c.norm_eps)


def steps_for(flops_or_tokens: float, per_step: float) -> int:
    """Optimiser steps that spend a budget: the nearest whole number, at least one."""
    return max(1, math.floor(flops_or_tokens / per_step + 0.5))
