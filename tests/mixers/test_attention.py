"""Options of softmax attention: each against its definition, or against a released model."""

from __future__ import annotations

import math

import pytest
import torch

from attnres_lab.mixers import State
from attnres_lab.mixers.attention import Attention, AttentionConfig
from attnres_lab.mixers.rope import RopeConfig, frequencies, rope_angles, rotate
from attnres_lab.model import ModelConfig

T, D = 9, 16


def built(**options: object) -> Attention:
    torch.manual_seed(0)
    return Attention(AttentionConfig(**options), ModelConfig(dim=D, num_heads=2)).double()


def x_of(seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, T, D, generator=generator, dtype=torch.float64)


def test_heads_may_be_wider_than_the_share_of_the_trunk() -> None:
    attention = built(head_dim=12)
    assert attention.q.weight.shape == (24, D)
    assert attention.out.weight.shape == (D, 24)
    assert attention(x_of()).shape == (2, T, D)


@pytest.mark.parametrize("window", [1, 3, T])
def test_a_position_sees_the_window_and_nothing_before_it(window: int) -> None:
    attention, x = built(window=window), x_of().requires_grad_()
    out = attention(x)
    for time in range(T):
        (gradient,) = torch.autograd.grad(out[0, time].sum(), x, retain_graph=True)
        seen = gradient[0].abs().amax(-1) > 0
        assert seen.tolist() == [time - window < t <= time for t in range(T)]


def test_a_window_keeps_no_more_than_it_sees() -> None:
    state = State()
    attention = built(window=4)
    for past in range(T):
        attention(x_of()[:, past : past + 1], past, state)
    assert state["k"].shape[2] == 3


def test_without_positions_the_last_output_ignores_the_order_of_the_past() -> None:
    x = x_of()
    shuffled = torch.cat([x[:, torch.randperm(T - 1)], x[:, -1:]], 1)
    nope = built(rope=RopeConfig(fraction=0.0))
    torch.testing.assert_close(nope(shuffled)[:, -1], nope(x)[:, -1], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(built()(shuffled)[:, -1], built()(x)[:, -1])


def test_biases_act_and_start_at_zero() -> None:
    attention, plain = built(bias=True), built()
    attention.init_weights(torch.Generator().manual_seed(2), 4)
    plain.init_weights(torch.Generator().manual_seed(2), 4)
    torch.testing.assert_close(attention(x_of()), plain(x_of()), rtol=0, atol=0)
    assert attention.q.bias is not None
    attention.q.bias.data += 1
    assert not torch.allclose(attention(x_of()), plain(x_of()))


def test_the_gate_is_a_sigmoid_before_the_last_projection() -> None:
    gated, plain = built(output_gate=True), built()
    gated.load_state_dict(plain.state_dict(), strict=False)
    assert gated.gate is not None
    gated.gate.weight.data.zero_()  # sigmoid(0) = 1/2
    torch.testing.assert_close(gated(x_of()), plain(x_of()) / 2, rtol=1e-12, atol=1e-12)


def test_partial_rotation_leaves_the_rest_of_the_head() -> None:
    x = torch.randn(1, 2, T, 8)
    angles = rope_angles(RopeConfig(), 4, 1e4, range(T), x.device)
    turned = rotate(x, angles)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    torch.testing.assert_close(turned[..., :4], rotate(x[..., :4], angles))


RELEASED = [
    # Llama 3.1: factor 8, low 1, high 4, 8192 positions, theta 500000, heads of 128
    (
        RopeConfig(scaling="llama3"),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    (
        RopeConfig(scaling="yarn", factor=4.0, original_length=4096),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
    ),
    (
        RopeConfig(scaling="yarn", factor=32.0, original_length=1024, slow=2.0, fast=16.0),
        {
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 1024,
            "beta_slow": 2.0,
            "beta_fast": 16.0,
        },
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), RELEASED, ids=lambda c: getattr(c, "scaling", ""))
def test_scaled_frequencies_are_those_of_transformers(
    ours: RopeConfig, theirs: dict[str, object]
) -> None:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    length = theirs["original_max_position_embeddings"]
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=int(length * theirs["factor"]),  # type: ignore[operator]
        rope_parameters={"rope_theta": 500_000.0, **theirs},
    )
    expected, amplitude = ROPE_INIT_FUNCTIONS[str(theirs["rope_type"])](config, "cpu")
    got = frequencies(ours, 128, 500_000.0, torch.device("cpu"))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    assert ours.amplitude == pytest.approx(amplitude)


def test_scaling_slows_the_slow_pairs_by_the_factor_and_leaves_the_fast_ones() -> None:
    plain = frequencies(RopeConfig(), 128, 5e5, torch.device("cpu"))
    for kind in ("llama3", "yarn"):
        ratio = plain / frequencies(RopeConfig(scaling=kind), 128, 5e5, torch.device("cpu"))
        assert ratio[0] == 1
        assert ratio[-1].item() == pytest.approx(8)
        assert (ratio.diff() >= 0).all()
    assert RopeConfig(scaling="yarn").amplitude == pytest.approx(0.1 * math.log(8) + 1)


@pytest.mark.parametrize("bias", [False, True])
def test_keys_and_values_with_inputs_of_their_own(bias: bool) -> None:
    """Head by head without positions; and ``values`` stands between projection and attention."""
    attention = built(bias=bias, rope=RopeConfig(fraction=0.0))
    for n, parameter in enumerate(attention.parameters()):
        parameter.data += 0.3 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64
        )
    inputs = [x_of(seed) for seed in (1, 2, 3)]
    eps = torch.finfo(torch.float32).eps if attention.norm.eps is None else attention.norm.eps
    xq, xk, xv = (
        attention.norm.weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt() for x in inputs
    )
    w_k, w_v = attention.kv.weight[:D], attention.kv.weight[D:]
    zero = torch.zeros(D, dtype=torch.float64)
    b_q, b_kv = (attention.q.bias, attention.kv.bias) if bias else (zero, torch.cat([zero, zero]))
    q, k, v = xq @ attention.q.weight.T + b_q, xk @ w_k.T + b_kv[:D], xv @ w_v.T + b_kv[D:]
    v = 3 * v + 1
    heads = []
    for head in (slice(0, 8), slice(8, 16)):
        scores = q[..., head] @ k[..., head].mT / math.sqrt(8)
        seen = torch.ones(T, T, dtype=torch.bool).tril()
        heads.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v[..., head])
    expected = torch.cat(heads, -1) @ attention.out.weight.T
    got = attention(inputs[0], kv_BTD=(inputs[1], inputs[2]), values=lambda v: 3 * v + 1)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    same = attention(inputs[0], kv_BTD=(inputs[0], inputs[0]))
    torch.testing.assert_close(same, attention(inputs[0]), rtol=1e-12, atol=1e-12)
