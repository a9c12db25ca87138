"""Kimi Delta Attention as a sublayer: its definition, its state, its start."""

from __future__ import annotations

import pytest
import torch
from definitions import kda as definition
from torch import Tensor
from trunks import build, tokens

from attnres_lab.mixers import State
from attnres_lab.mixers.kda import KDA, KDAConfig
from attnres_lab.model import ModelConfig

D, T = 12, 11


def built(c: KDAConfig | None = None) -> KDA:
    layer = KDA(c or KDAConfig(), ModelConfig(dim=D, num_heads=2)).double()
    layer.init_weights(torch.Generator().manual_seed(0), 1)
    layer.gain.data.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    return layer


def x_of(length: int = T, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, length, D, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("config", [KDAConfig(), KDAConfig(heads=3, head_dim=5, conv=2)])
def test_the_definition(config: KDAConfig) -> None:
    layer = built(config)
    with torch.no_grad():
        for row, out in zip(layer.norm(x_of()), layer(x_of()), strict=True):
            expected = definition(row, dict(layer.state_dict()), layer.heads)
            torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


def test_the_bounded_decay_is_kimi_k3s() -> None:
    """g = -5 sigmoid(exp(A_log) (f + dt_bias)): between -5 and 0."""
    layer = built(KDAConfig(decay="bounded"))
    change = x_of()  # heads times width is D
    f = change + layer.decay_bias
    rate = layer.log_rate.exp().repeat_interleave(layer.width)
    expected = -5 / (1 + (-rate * f).exp())
    got = layer.log_decay(change).transpose(1, 2).flatten(2)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_rates_of_decay_start_in_the_published_ranges() -> None:
    layer = KDA(KDAConfig(heads=64, head_dim=8), ModelConfig(dim=D, num_heads=2))
    layer.init_weights(torch.Generator().manual_seed(0), 1)
    rate, step = layer.log_rate.exp(), torch.nn.functional.softplus(layer.decay_bias)
    assert 1 <= rate.min() < 2
    assert 15 < rate.max() <= 16
    assert step.min().item() == pytest.approx(1e-3, rel=0.05)
    assert step.max().item() == pytest.approx(1e-1, rel=0.05)


def test_the_state_has_the_same_size_at_any_length() -> None:
    layer = built()
    sizes = set()
    with torch.no_grad():
        for length in (4, 256):
            state = State()
            layer(x_of(length), 0, state)
            sizes.add(sum(value[0].numel() for value in state.values()))
    assert sizes == {2 * 6 * 6 + 3 * 3 * 12}  # a memory per head, three inputs of the convolution


def check_new_sequence() -> None:
    """What was decoded before does not show in a new sequence."""
    model = build("hybrid")
    with torch.no_grad():
        model(tokens(1), model.cache())
        torch.testing.assert_close(
            model(tokens(2), model.cache()), model(tokens(2)), rtol=1e-10, atol=1e-10
        )


def test_a_new_sequence_starts_afresh() -> None:
    check_new_sequence()


@pytest.mark.parametrize("part", ["memory", "conv"])
def test_a_state_that_is_not_reset_is_caught(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, left = KDA.forward, dict[int, Tensor]()

    def leaking(self: KDA, x: Tensor, past: int = 0, state: State | None = None):  # type: ignore[no-untyped-def]
        if state is not None and id(self) in left:
            state.setdefault(part, left[id(self)])
        out = forward(self, x, past, state)
        if state is not None:
            left[id(self)] = state[part]
        return out

    monkeypatch.setattr(KDA, "forward", leaking)
    with pytest.raises(AssertionError):
        check_new_sequence()
