"""N and FLOPs against torch's own counts."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attnres_lab import ops
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.model.flops import (
    forward_flops_per_token,
    num_params,
    steps_for,
    training_flops_per_token,
)
from attnres_lab.ops import naive, twophase
from attnres_lab.residual import BaselineConfig
from attnres_lab.residual.attnres import BlockConfig, FullConfig

CASES = [
    ModelConfig(dim=32, num_layers=3, num_heads=4, residual=BaselineConfig()),
    ModelConfig(
        dim=32, num_layers=3, num_heads=4, num_kv_heads=2, qk_norm=True, residual=FullConfig()
    ),
    ModelConfig(
        dim=48,
        num_layers=5,
        num_heads=4,
        mlp_dim=80,
        vocab_size=100,
        tie_embeddings=True,
        residual=BlockConfig(block_size=4),
    ),
    ModelConfig(dim=16, num_layers=2, num_heads=2, residual=BlockConfig(num_blocks=3)),
]


@pytest.mark.parametrize("config", CASES, ids=lambda c: c.residual.label)
def test_training_flops_equal_torchs_counter_on_the_matrix_products(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted on the definition of depth attention: a schedule may merge products, the method's
    FLOPs stay what they are.
    """
    monkeypatch.setattr(ops, "depth_attention", naive.depth_attention)
    monkeypatch.setattr(twophase, "serves", lambda *_: False)
    B, T = 2, 24
    model = Transformer(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        loss = model(torch.zeros(B, T, dtype=torch.long)).sum()
    assert forward.get_total_flops() == B * T * forward_flops_per_token(config, T)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as both:
        loss = model(torch.zeros(B, T, dtype=torch.long)).sum()
        loss.backward()
    assert both.get_total_flops() == B * T * training_flops_per_token(config, T)


@pytest.mark.parametrize("config", CASES, ids=lambda c: c.residual.label)
def test_parameters_are_those_of_the_built_model(config: ModelConfig) -> None:
    model = Transformer(config)
    total = sum(p.numel() for p in model.parameters())
    embedding = model.embed.weight.numel() * (1 if config.tie_embeddings else 2)
    assert num_params(config).total == total
    assert num_params(config).non_embedding == total - embedding


def test_a_budget_is_spent_to_the_nearest_step() -> None:
    assert steps_for(1000, 100) == 10
    assert steps_for(1049, 100) == 10
    assert steps_for(1051, 100) == 11
    assert steps_for(1, 100) == 1
