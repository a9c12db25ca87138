"""Trunks that the conformance suite runs: every mixer, and the options worth a sweep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnres_lab.mixers import (
    AttentionConfig,
    KDAConfig,
    LocalConfig,
    MixersConfig,
    MLAConfig,
    MoEConfig,
)
from attnres_lab.mixers.rope import RopeConfig
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.residual import ResidualConfig
from attnres_lab.residual.attnres import BlockConfig, FullConfig
from attnres_lab.residual.baseline import BaselineConfig

B, T, D, VOCAB, LAYERS = 2, 11, 16, 13, 4

VARIANTS: list[ResidualConfig] = [BaselineConfig(), FullConfig(), BlockConfig(block_size=3)]


def attention(**options: Any) -> MixersConfig:
    return MixersConfig(attention=AttentionConfig(**options))


TRUNKS: dict[str, dict[str, Any]] = {
    "dense": {},
    "wide-heads": {"mixers": attention(head_dim=12, bias=True), "qk_norm": True},
    "window": {"mixers": attention(window=3), "num_kv_heads": 1},
    "gated-nope": {"mixers": attention(output_gate=True, rope=RopeConfig(fraction=0.0))},
    "local": {
        "mixers": MixersConfig(
            ("local", "local", "attention", "local"),
            attention=AttentionConfig(rope=RopeConfig(fraction=0.0)),
            local=LocalConfig(window=3),
        )
    },
    "kda": {"mixers": MixersConfig(("kda",))},
    "kda-k3": {"mixers": MixersConfig(("kda",), kda=KDAConfig(3, 4, 2, "bounded", "full"))},
    "hybrid": {"mixers": MixersConfig(("kda", "kda", "kda", "mla")), "mlp": MoEConfig(experts=4)},
    "mla": {"mixers": MixersConfig(("attention", "mla"))},
    "mla-k3": {"mixers": MixersConfig(("mla",), mla=MLAConfig(12, 7, 3, 5, output_gate=True))},
    "moe": {"mlp": MoEConfig(experts=4)},
    "moe-alone": {"mlp": MoEConfig(experts=5, top_k=3, shared=0, expert_dim=6, dense_layers=0)},
    "yarn": {"mixers": attention(rope=RopeConfig(0.5, "yarn", original_length=64))},
}


def build(
    trunk: str, residual: ResidualConfig | None = None, *, randomise: bool = True, **sizes: Any
) -> Transformer:
    """A small model in float64; ``randomise`` moves what starts at a constant off its start."""
    options = {"dim": D, "num_layers": LAYERS, "num_heads": 2, **TRUNKS[trunk], **sizes}
    config = ModelConfig(VOCAB, residual=residual or BaselineConfig(), **options)
    model = Transformer(config, seed=3).double().eval()
    if randomise:
        generator = torch.Generator().manual_seed(5)
        constant = [*model.residual.parameters()]
        constant += [p for p in model.sublayers.parameters() if p.ndim == 1]
        constant += list(model.sublayers.buffers())
        for value in constant:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.data += 0.3 * noise
    return model


def tokens(seed: int = 7, length: int = T) -> Tensor:
    return torch.randint(VOCAB, (B, length), generator=torch.Generator().manual_seed(seed))
