"""The operator against the paper's equations in plain loops, and its fast twins against the naive
one.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnres_lab import ops
from attnres_lab.ops import lean, naive

EPS = 1e-6


def by_hand(
    sources: list[list[float]], query: list[float], gain: list[float], eps: float
) -> list[float]:
    """h = sum_i softmax_i(w . RMSNorm(v_i)) v_i for one token, in plain Python."""
    logits = []
    for v in sources:
        rms = math.sqrt(sum(x * x for x in v) / len(v) + eps)
        logits.append(sum(w * g * x / rms for w, g, x in zip(query, gain, v, strict=True)))
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [
        sum(a * v[d] for a, v in zip(weights, sources, strict=True)) / sum(weights)
        for d in range(len(query))
    ]


def problem(count: int, dim: int = 8, tokens: int = 3, seed: int = 0, scale: float = 1.0):
    make = torch.Generator().manual_seed(seed)
    sources = [torch.randn(tokens, dim, generator=make, dtype=torch.float64) for _ in range(count)]
    query = torch.randn(dim, generator=make, dtype=torch.float64) * scale
    return sources, query, torch.rand(dim, generator=make, dtype=torch.float64) + 0.5


def adversarial(kind: str):
    sources, query, gain = problem(6, dim=16)
    if kind == "one source 1e4 times larger":
        sources[2] = sources[2] * 1e4
    elif kind == "identical sources":
        sources = [sources[0].clone() for _ in sources]
    elif kind == "a zero source":
        sources[3] = torch.zeros_like(sources[3])
    # logits of +-80: RMSNorm(v) has length sqrt(D), so a source along the query has the logit
    # |query| sqrt(D)
    else:
        gain = torch.ones_like(gain)
        query = query / query.norm() * 20.0
        sources[1], sources[4] = query.repeat(3, 1), -query.repeat(3, 1)
    return sources, query, gain


KINDS = ["one source 1e4 times larger", "identical sources", "a zero source", "logits of 80"]
TWINS = [naive.depth_attention, lean.depth_attention, ops.depth_attention]


def values_and_gradients(read, sources, query, gain, dtype=torch.float64):
    leaves = [x.to(dtype).detach().requires_grad_() for x in (*sources, query, gain)]
    h = read(leaves[:-2], leaves[-2], leaves[-1], EPS)
    direction = torch.cos(torch.arange(h.numel(), dtype=torch.float64)).view_as(h).to(dtype)
    return [h.detach(), *torch.autograd.grad(h, leaves, direction)]


@pytest.mark.parametrize("read", TWINS, ids=["naive", "lean", "public"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 33, 64, 130])
def test_a_read_is_the_papers_equation(read, count):
    """For 1 to 130 sources the operator equals plain loops over the definition."""
    sources, query, gain = problem(count, seed=count)
    h = read(sources, query, gain, EPS)
    for token in range(3):
        expected = by_hand([v[token].tolist() for v in sources], query.tolist(), gain.tolist(), EPS)
        torch.testing.assert_close(
            h[token], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", TWINS[:2], ids=["naive", "lean"])
def test_adversarial_inputs_follow_the_equation(read, kind):
    sources, query, gain = adversarial(kind)
    h = read(sources, query, gain, EPS)
    expected = [
        by_hand([v[t].tolist() for v in sources], query.tolist(), gain.tolist(), EPS)
        for t in range(3)
    ]
    torch.testing.assert_close(
        h, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-11
    )


def test_the_naive_gradient_is_the_numerical_one():
    sources, query, gain = problem(3, dim=4, tokens=2)
    leaves = [x.requires_grad_() for x in (*sources, query, gain)]
    assert torch.autograd.gradcheck(
        lambda *x: naive.depth_attention(x[:-2], x[-2], x[-1], EPS), leaves
    )


def assert_lean_is_naive(*args):
    for a, b in zip(
        values_and_gradients(lean.depth_attention, *args),
        values_and_gradients(naive.depth_attention, *args),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max() + 1))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 33),
    st.integers(1, 9),
    st.floats(0.0, 8.0),
    st.integers(0, 10_000),
)
def test_values_and_all_gradients_of_the_lean_read_equal_the_naive_ones(
    count, dim, tokens, scale, seed
):
    assert_lean_is_naive(*problem(count, dim, tokens, seed, scale))


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float64),
    ],
    ids=str,
)
def test_parameters_may_have_another_dtype_than_the_sources(dtypes):
    sources, query, gain = problem(3)
    sources, query, gain = (
        [v.to(dtypes[0]) for v in sources],
        query.to(dtypes[1]),
        gain.to(dtypes[1]),
    )
    h = lean.depth_attention(sources, query, gain, EPS)
    torch.testing.assert_close(h, naive.depth_attention(sources, query, gain, EPS))


@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_gradients_equal_the_naive_ones(kind):
    assert_lean_is_naive(*adversarial(kind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_errs_at_most_twice_as_much_as_the_naive_read(dtype):
    """Measured against the naive read in float64 on the same rounded inputs."""
    sources, query, gain = problem(9, dim=40, tokens=16)
    sources, query, gain = [v.to(dtype) for v in sources], query.to(dtype), gain.to(dtype)
    exact = values_and_gradients(naive.depth_attention, sources, query, gain)
    ours = values_and_gradients(lean.depth_attention, sources, query, gain, dtype)
    theirs = values_and_gradients(naive.depth_attention, sources, query, gain, dtype)
    for a, b, truth in zip(ours, theirs, exact, strict=True):
        # logits of 10 lose a few bits
        unit = (
            torch.finfo(dtype).eps
            * float(truth.abs().max())
            * (16 if dtype == torch.float32 else 1)
        )
        assert (a.double() - truth).abs().max() <= 2 * (b.double() - truth).abs().max() + unit


def test_autocast_does_not_lower_the_statistics():
    """bf16 logits would be off by about 1e-2; fp32 ones by 1e-6."""
    sources, query, gain = problem(5, dim=64)
    sources, query, gain = [v.float() for v in sources], query.float(), gain.float()
    for read in TWINS:
        plain = read(sources, query, gain, EPS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(read(sources, query, gain, EPS), plain, rtol=1e-6, atol=1e-6)


def test_the_lean_read_is_a_sound_operator():
    """Schema, fake implementation, autograd registration and graph tracing agree."""
    sources = [torch.randn(4, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    query = torch.randn(8, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(lean.depth_read, (sources, query, EPS, "softmax", 1, True))


def test_the_lean_read_saves_weights_and_references_only():
    """What it keeps for the backward beyond the sources: S weights per token and the query."""
    sources = [torch.randn(32, 64, requires_grad=True) for _ in range(10)]
    query, gain = torch.randn(64, requires_grad=True), torch.ones(64)
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        lean.depth_attention(sources, query, gain, EPS)
    for v in sources:
        kept.pop(v.untyped_storage().data_ptr())
    assert sum(kept.values()) <= 4 * (10 * 32 + 3 * 64)


WIDTH = torch.randn(2, 4)


@pytest.mark.parametrize(
    ("sources", "query", "gain", "message"),
    [
        ([], torch.ones(4), torch.ones(4), "no sources"),
        (
            [WIDTH, torch.randn(3, 4)],
            torch.ones(4),
            torch.ones(4),
            r"shape of source 1 is \(3, 4\), of source 0 \(2, 4\)",
        ),
        (
            [WIDTH, WIDTH.double()],
            torch.ones(4),
            torch.ones(4),
            "dtype of source 1 is torch.float64",
        ),
        (
            [WIDTH, WIDTH.to("meta")],
            torch.ones(4),
            torch.ones(4),
            "device of source 1 is meta, of source 0 cpu",
        ),
        (
            [WIDTH],
            torch.ones(5),
            torch.ones(4),
            r"pseudo_query has shape \(5,\), the sources' width asks for \(4,\)",
        ),
        ([WIDTH], torch.ones(4), torch.ones(1), r"key_gain has shape \(1,\)"),
        ([WIDTH], torch.ones(4, device="meta"), torch.ones(4), "pseudo_query is on meta"),
    ],
)
def test_bad_input_gets_one_clear_error(sources, query, gain, message):
    for call in (ops.depth_attention, ops.depth_weights):
        with pytest.raises(ValueError, match=f"^depth attention: .*{message}") as error:
            call(sources, query, gain, EPS)
        assert "\n" not in str(error.value)
