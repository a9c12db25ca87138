"""The Triton kernels against the naive read, in Triton's interpreter; ``test_fused.py`` runs this
file in a process of its own.
"""

from __future__ import annotations

import pytest
import torch

from attnres_lab.ops import fused, naive
from attnres_lab.ops.reads import PAPER, Weighing

EPS = 1e-6


def problem(count, dim, tokens, dtype, seed=0, scale=1.0):
    make = torch.Generator().manual_seed(seed)
    sources = [torch.randn(tokens, dim, generator=make).to(dtype) for _ in range(count)]
    query = torch.randn(dim, generator=make) * scale * 3 / dim**0.5  # logits of about 3
    return sources, query, torch.randn(tokens, dim, generator=make).to(dtype)


def naive_gradients(sources, query, grad, dtype, how=PAPER):
    """Naive read and gradients computed in ``dtype``."""
    leaves = [x.to(dtype).detach().requires_grad_() for x in sources]
    q = query.to(torch.promote_types(dtype, torch.float32)).detach().requires_grad_()
    h = naive.depth_attention(leaves, q, None, EPS, how)
    *d_sources, d_query = torch.autograd.grad(h, [*leaves, q], grad.to(dtype))
    return [h.detach(), *d_sources, d_query]


def fused_gradients(sources, query, grad, how=PAPER):
    """By way of the query that the operator is given."""
    query = query.detach().requires_grad_()
    scaled = how.query(query, None)
    h, alpha = fused.depth_read(sources, scaled.detach(), EPS, how)
    d_sources, d_query = fused.depth_read_backward(grad, sources, scaled.detach(), alpha, EPS, how)
    return [h, *d_sources, *torch.autograd.grad(scaled, query, d_query)]


def assert_as_good_as_naive(sources, query, grad, dtype, how=PAPER):
    exact = naive_gradients(sources, query, grad, torch.float64, how)
    theirs = naive_gradients(sources, query, grad, dtype, how)
    ours = fused_gradients(sources, query, grad, how)
    for a, b, truth in zip(ours, theirs, exact, strict=True):
        unit = (
            torch.finfo(dtype).eps
            * float(truth.abs().max() + 1)
            # sums of a row's numbers are rounded too
            * (max(64, 4 * grad.shape[1] ** 0.5) if dtype == torch.float32 else 1)
        )
        assert (a.double() - truth).abs().max() <= 2 * (b.double() - truth).abs().max() + unit


OPTIONS = {
    "paper": PAPER,
    "heads": Weighing(heads=4),
    "three heads": Weighing(heads=3),
    "heads of one channel": Weighing(heads=8),
    "sigmoid": Weighing("sigmoid"),
    "sigmoid heads": Weighing("sigmoid", heads=2),
    "static": Weighing("static"),
    "no key norm": Weighing(key_norm=False),
    "sigmoid heads, no key norm": Weighing("sigmoid", heads=4, key_norm=False),
    "temperature": Weighing(temperature=3.0),
    "static, temperature": Weighing("static", temperature=3.0),
}
# option by option, with ``QUICK`` in the default suite
CASES = [
    (option, count, dim, tokens, dtype)
    for count, dim, tokens, dtype in [
        (1, 8, 3, torch.bfloat16),
        (5, 100, 18, torch.bfloat16),
        (3, 300, 5, torch.float16),
        (5, 100, 18, torch.float32),
        (5, 24, 50, torch.float32),
        (130, 8, 2, torch.float32),
        (33, 37, 7, torch.float16),
        (3, 111, 4, torch.bfloat16),
        (2, 4096, 3, torch.bfloat16),
        (2, 4096, 3, torch.float32),
    ]
    for option, how in OPTIONS.items()
    if dim % how.heads == 0
]
QUICK = {(5, 24, 50, torch.float32), (1, 8, 3, torch.bfloat16)}


@pytest.mark.parametrize(
    ("option", "count", "dim", "tokens", "dtype"),
    [case if case[1:] in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_values_and_gradients_are_as_good_as_the_naive_ones(option, count, dim, tokens, dtype):
    """Any width, 1 to 130 sources, and token counts that do not fill the last block."""
    how = OPTIONS[option]
    sources, query, grad = problem(count, dim, tokens, dtype)
    if how.mixing == "static":
        query = torch.linspace(-1.0, 2.0, count)
    assert_as_good_as_naive(sources, query, grad, dtype, how)


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
