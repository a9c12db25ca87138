"""Multi-head latent attention against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from definitions import mla as definition
from torch import nn

from attnres_lab.mixers import State
from attnres_lab.mixers.mla import MLA, MLAConfig
from attnres_lab.model import ModelConfig

D, T = 12, 6


def built(**options: Any) -> MLA:
    layer = MLA(MLAConfig(**options), ModelConfig(dim=D, num_heads=2)).double()
    layer.init_weights(torch.Generator().manual_seed(0), 1)
    layer.latent_norm.weight.data.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    return layer


def check_definition(layer: MLA) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, T, D, generator=generator, dtype=torch.float64)
    for row, out in zip(layer.norm(x), layer(x), strict=True):
        expected = definition(row, dict(layer.state_dict()), 2, layer.latent_dim, layer.shared_dim)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [{}, {"head_dim": 5, "latent_dim": 7, "shared_dim": 3}, {"output_gate": True}],
    ids=["default", "widths", "gate"],
)
def test_the_definition(options: dict[str, Any]) -> None:
    check_definition(built(**options))


def test_a_latent_that_is_not_normalised_is_caught() -> None:
    layer = built()
    state = layer.state_dict()
    layer.latent_norm = nn.Identity()  # type: ignore[assignment]
    layer.state_dict = lambda: state  # type: ignore[assignment,method-assign]
    with pytest.raises(AssertionError):
        check_definition(layer)


def test_decoding_keeps_the_latent_and_the_shared_key_only() -> None:
    layer, state = built(), State()
    layer(torch.randn(1, T, D, dtype=torch.float64), 0, state)
    assert sum(value[0, 0].numel() for value in state.values()) == 4 * 6 + 3
