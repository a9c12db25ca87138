"""Every sublayer under a few residual connections, in float64."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from trunks import TRUNKS, VARIANTS, VOCAB, B, D, T, build, tokens

from attnres_lab import ops
from attnres_lab.mixers import MLPS, MixersConfig
from attnres_lab.model import Transformer
from attnres_lab.model.flops import (
    forward_flops_per_token,
    num_params,
    training_flops_per_token,
)
from attnres_lab.ops import naive, twophase
from attnres_lab.residual import ResidualConfig
from attnres_lab.residual.attnres import BlockConfig, FullConfig
from attnres_lab.residual.baseline import BaselineConfig
from tests.residual.conformance import embedding_gradients

trunks = pytest.mark.parametrize("trunk", TRUNKS)
variants = pytest.mark.parametrize("residual", VARIANTS, ids=lambda r: r.label)
TINY_EPS = 1e-30


def loss(model: Transformer) -> Tensor:
    return F.cross_entropy(model(tokens()).flatten(0, 1), tokens(8).flatten())


def grouped_convolution_excess(counter: FlopCounterMode, gradients: int = 2) -> int:
    """What the counter adds for the backward pass of convolutions by channel, of their inputs and
    weights or of their inputs alone, beyond as often their forward pass: its formula for the
    gradient of the weights leaves the groups out.
    """
    counts = counter.get_flop_counts()["Global"]
    forward = counts.get(torch.ops.aten.convolution, 0)
    return int(counts.get(torch.ops.aten.convolution_backward, 0) - gradients * forward)


def test_every_mixer_is_covered() -> None:
    """A mixer that is registered is in a trunk of the suite."""
    models = [build(trunk).config for trunk in TRUNKS]
    used = {name for config in models for name in config.mixers.pattern}
    assert used == {f.name for f in fields(MixersConfig)} - {"pattern"}
    assert {config.mlp.name for config in models} == set(MLPS)


@variants
@trunks
def test_causal_and_sequences_are_independent(trunk: str, residual: ResidualConfig) -> None:
    model = build(trunk, residual)
    for time, gradient in enumerate(embedding_gradients(model, tokens())):
        reached = gradient[0].abs().amax(-1) > 0
        assert not reached[time + 1 :].any()
        assert reached[time]
        assert not gradient[1].any()
    torch.testing.assert_close(model(tokens())[:1], model(tokens()[:1]), rtol=1e-11, atol=1e-11)


@variants
@trunks
@pytest.mark.parametrize("pieces", [[1] * T, [2, 1, 8], [9, 2]], ids=["tokens", "three", "two"])
def test_decoding_equals_one_pass(trunk: str, residual: ResidualConfig, pieces: list[int]) -> None:
    model = build(trunk, residual)
    cache = model.cache()
    with torch.no_grad():
        parts = [model(part, cache) for part in tokens().split(pieces, 1)]
        whole = model(tokens())
    assert cache.length == T
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-9)


@variants
@trunks
def test_flops_and_parameters_equal_torchs_counts(
    trunk: str, residual: ResidualConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 24 positions, a whole number of KDA's chunks."""
    monkeypatch.setattr(ops, "depth_attention", naive.depth_attention)
    monkeypatch.setattr(twophase, "serves", lambda *_: False)
    model, length = build(trunk, residual).train(), 24
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        total = model(tokens(length=length)).sum()
    assert forward.get_total_flops() == B * length * forward_flops_per_token(model.config, length)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as both:
        total = model(tokens(length=length)).sum()
        total.backward()
    expected = B * length * training_flops_per_token(model.config, length)
    counted = both.get_total_flops() - grouped_convolution_excess(both)
    # in KDA's backward pass the solve has a product that counts, and the ends of a sequence less
    assert counted == pytest.approx(
        expected, rel=0.02 if "kda" in model.config.mixers.pattern else 0
    )
    params = num_params(model.config)
    assert params.total == sum(p.numel() for p in model.parameters())
    assert params.non_embedding == params.total - 2 * VOCAB * D


@variants
@trunks
def test_every_parameter_gets_a_gradient(trunk: str, residual: ResidualConfig) -> None:
    """A large eps, since under PreNorm a mere scale acts through the eps only."""
    model = build(trunk, residual, norm_eps=0.1).train()
    loss(model).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@trunks
def test_the_trunk_does_not_depend_on_the_residual_connection(trunk: str) -> None:
    base, *others = (build(trunk, r, randomise=False).state_dict() for r in VARIANTS)
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in base.items())


@trunks
@pytest.mark.parametrize("residual", [FullConfig(), BlockConfig(block_size=3)])
def test_attnres_starts_as_the_baseline(trunk: str, residual: ResidualConfig) -> None:
    """At zero queries, logits and gradients of the trunk."""
    base = build(trunk, BaselineConfig(), randomise=False, norm_eps=TINY_EPS)
    model = build(trunk, residual, randomise=False, norm_eps=TINY_EPS)
    torch.testing.assert_close(model(tokens()), base(tokens()), rtol=1e-9, atol=1e-9)
    loss(base).backward()
    loss(model).backward()
    for name, parameter in base.named_parameters():
        gradient = model.get_parameter(name).grad
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-9, msg=name)


@trunks
def test_checkpointing_changes_no_gradient(trunk: str) -> None:
    plain = build(trunk).train()
    saved = build(trunk, activation_checkpointing=True).train()
    loss(plain).backward()
    loss(saved).backward()
    for name, parameter in plain.named_parameters():
        gradient = saved.get_parameter(name).grad
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-12, msg=name)
