"""The Triton kernels against the naive read, in Triton's interpreter; ``test_fused.py`` runs this
file in a process of its own.
"""

from __future__ import annotations

import pytest
import torch

from attnres_lab.ops import fused, naive

EPS = 1e-6


def problem(count, dim, tokens, dtype, seed=0, scale=1.0):
    make = torch.Generator().manual_seed(seed)
    sources = [torch.randn(tokens, dim, generator=make).to(dtype) for _ in range(count)]
    query = torch.randn(dim, generator=make) * scale * 3 / dim**0.5  # logits of about 3
    return sources, query, torch.randn(tokens, dim, generator=make).to(dtype)


def naive_gradients(sources, query, grad, dtype):
    """Naive read and gradients computed in ``dtype``."""
    leaves = [x.to(dtype).detach().requires_grad_() for x in sources]
    q = query.to(torch.promote_types(dtype, torch.float32)).detach().requires_grad_()
    h = naive.depth_attention(leaves, q, torch.ones_like(q), EPS)
    *d_sources, d_query = torch.autograd.grad(h, [*leaves, q], grad.to(dtype))
    return [h.detach(), *d_sources, d_query]


def fused_gradients(sources, query, grad):
    h, alpha = fused.depth_read(sources, query, EPS)
    d_sources, d_query = fused.depth_read_backward(grad, sources, query, alpha, EPS)
    return [h, *d_sources, d_query]


def assert_as_good_as_naive(sources, query, grad, dtype):
    exact = naive_gradients(sources, query, grad, torch.float64)
    theirs = naive_gradients(sources, query, grad, dtype)
    for a, b, truth in zip(fused_gradients(sources, query, grad), theirs, exact, strict=True):
        unit = (
            torch.finfo(dtype).eps
            * float(truth.abs().max() + 1)
            * (64 if dtype == torch.float32 else 1)
        )
        assert (a.double() - truth).abs().max() <= 2 * (b.double() - truth).abs().max() + unit


CASES = [
    (1, 8, 3, torch.bfloat16),
    (5, 100, 18, torch.bfloat16),
    (3, 300, 5, torch.float16),
    (5, 100, 18, torch.float32),
    (130, 8, 2, torch.float32),
    (33, 37, 7, torch.float16),
    (2, 4096, 3, torch.bfloat16),
]


@pytest.mark.parametrize(("count", "dim", "tokens", "dtype"), CASES)
def test_values_and_gradients_are_as_good_as_the_naive_ones(count, dim, tokens, dtype):
    """Any width, 1 to 130 sources, and token counts that do not fill the last block."""
    assert_as_good_as_naive(*problem(count, dim, tokens, dtype), dtype)


@pytest.mark.parametrize("kind", ["larger", "identical", "zero", "logits of 80"])
def test_adversarial_inputs(kind):
    sources, query, grad = problem(6, 16, 4, torch.float32)
    if kind == "larger":
        sources[2] *= 1e4
    elif kind == "identical":
        sources = [sources[0].clone() for _ in sources]
    elif kind == "zero":
        sources[3].zero_()
    else:
        query = query / query.norm() * 20.0
        sources[1], sources[4] = query.repeat(4, 1), -query.repeat(4, 1)
    assert_as_good_as_naive(sources, query, grad, torch.float32)


def test_strided_sources_and_gradients():
    sources, query, grad = problem(3, 16, 6, torch.float32)
    strided = [v.t().contiguous().t() for v in sources]
    for a, b in zip(
        fused_gradients(strided, query, grad.t().contiguous().t()),
        fused_gradients(sources, query, grad),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_weights_sum_to_one_and_runs_repeat_bit_for_bit():
    sources, query, grad = problem(3, 40, 70, torch.float32)
    weights = fused.depth_read(sources, query, EPS)[1]
    torch.testing.assert_close(weights.sum(0), torch.ones(1, 70))
    for a, b in zip(
        fused_gradients(sources, query, grad), fused_gradients(sources, query, grad), strict=True
    ):
        assert torch.equal(a, b)


def test_sources_that_start_anywhere():
    """The kernels are told that rows start at multiples of 16 bytes; a view need not."""
    sources, query, grad = problem(3, 16, 6, torch.float32)
    shifted = [torch.cat([v.new_zeros(1), v.flatten()])[1:].view(6, 16) for v in sources]
    assert shifted[0].data_ptr() % 16
    for a, b in zip(
        fused_gradients(shifted, query, grad), fused_gradients(sources, query, grad), strict=True
    ):
        assert torch.equal(a, b)
