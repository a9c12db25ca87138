"""What a run costs, in one formula each: parameters and exact training FLOPs.

FLOPs are those of the matrix products (a multiply and an add are two), attention scores counted in
full (not halved for causality), as ``torch.utils.flop_counter.FlopCounterMode`` counts them; the
backward pass costs twice the forward, but for the projection of patches, which passes no gradient
on. A frozen trunk has no gradients of its weights; those of its inputs are counted down to the
embedding, also in its first sublayers, below which nothing may learn. Recomputation is not counted.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import torch

from attnres_lab.mixers import Mixer
from attnres_lab.model.transformer import ModelConfig
from attnres_lab.model.vit import ImageShape
from attnres_lab.residual import REGISTRY, Residual


@dataclass(frozen=True)
class Params:
    """Numbers of parameters; ``non_embedding`` is N of the scaling laws (embedding and head left
    out), ``active`` the part of it that a token uses.
    """

    non_embedding: int
    total: int
    active: int


@lru_cache(maxsize=1024)
def num_params(c: ModelConfig) -> Params:
    """Parameters of a model, without its memory."""
    sublayers = _sublayers(c)
    n = (
        c.dim
        + residual_params(c)
        + sum(p.numel() * k for m, k in sublayers for p in m.parameters())
    )
    idle = sum(m.idle_params() * k for m, k in sublayers)
    return Params(n, n + c.vocab_size * c.dim * (1 if c.tie_embeddings else 2), n - idle)


@lru_cache(maxsize=1024)
def residual_params(c: ModelConfig) -> int:
    """Parameters of the residual connection."""
    return sum(p.numel() for p in _residual(c).parameters())


@lru_cache(maxsize=1024)
def forward_flops_per_token(c: ModelConfig, seq_len: int) -> int:
    """Forward FLOPs per token at ``seq_len``, depth attention included."""
    return _trunk_flops(c, seq_len) + 2 * c.dim * c.vocab_size


def training_flops_per_token(c: ModelConfig, seq_len: int, *, frozen: bool = False) -> int:
    """Forward and backward FLOPs per token; ``frozen``: the trunk with embedding and head is."""
    saved = _weight_flops(c) + 2 * c.dim * c.vocab_size if frozen else 0
    return 3 * forward_flops_per_token(c, seq_len) - saved


@lru_cache(maxsize=1024)
def adapter_flops_per_token(c: ModelConfig, rank: int, names: tuple[str, ...]) -> int:
    """Forward and backward FLOPs per token of the two matrices beside each linear map of these
    names.
    """
    maps = [
        (m.in_features + m.out_features) * count
        for mixer, count in _sublayers(c)
        for name, m in mixer.linear_maps().items()
        if name in names
    ]
    return 3 * 2 * rank * sum(maps)


def image_params(c: ModelConfig, image: ImageShape) -> Params:
    """Parameters of a ViT; projection, positions and head are left out of ``non_embedding``."""
    positions = image.patches if image.positions else 0
    outside = (image.patch_values + positions + image.classes) * c.dim
    trunk = num_params(c)
    return Params(trunk.non_embedding, trunk.non_embedding + outside, trunk.active)


def image_training_flops(c: ModelConfig, image: ImageShape, *, frozen: bool = False) -> int:
    """Forward and backward FLOPs of a ViT per image; ``frozen``: trunk, projection and head are."""
    projection = 2 * image.patches * image.patch_values * c.dim
    head = 2 * c.dim * image.classes
    saved = projection + head + image.patches * _weight_flops(c) if frozen else 0
    return 2 * projection + 3 * (head + image.patches * _trunk_flops(c, image.patches)) - saved


def _trunk_flops(c: ModelConfig, seq_len: int) -> int:
    """Forward FLOPs of the sublayers and the residual connection per token."""
    sublayers = sum(m.flops_per_token(seq_len) * k for m, k in _sublayers(c))
    return sublayers + _residual(c).flops_per_token()


def _weight_flops(c: ModelConfig) -> int:
    """Forward FLOPs of the products with weights of the sublayers, per token."""
    return sum(m.weight_flops() * k for m, k in _sublayers(c))


def _sublayers(c: ModelConfig) -> list[tuple[Mixer, int]]:
    """Each kind of sublayer, without memory, and how often it occurs."""
    with torch.device("meta"):
        return [(config.build(c), count) for config, count in Counter(c.sublayers).items()]


def _residual(c: ModelConfig) -> Residual:
    with torch.device("meta"):
        return REGISTRY[c.residual.name](c.connection, c.num_sublayers, c.dim, c.norm_eps)


def steps_for(flops_or_tokens: float, per_step: float) -> int:
    """Optimiser steps that spend a budget: the nearest whole number, at least one."""
    return max(1, math.floor(flops_or_tokens / per_step + 0.5))
