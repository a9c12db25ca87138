"""Reads of few tokens without gradients equal naive reads."""

from __future__ import annotations

import pytest
import torch

from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.ops.decoding import FEW, Decoding, serves
from attnres_lab.ops.naive import depth_attention, depth_weights
from attnres_lab.ops.reads import Reads
from attnres_lab.residual.attnres import BlockConfig, FullConfig

EPS = 1e-6


def walk(ends, dim=16, tokens=(3, 1), dtype=torch.float64, scale=1.0):
    """Reads of both, and the sources of the last one: sublayers tanh(h W)."""
    make = torch.Generator().manual_seed(0)
    x, query, gain = (
        torch.randn(*shape, generator=make, dtype=torch.float64).to(dtype)
        for shape in ((*tokens, dim), (ends[-1], dim), (ends[-1], dim))
    )
    query = query * scale
    done, partial, reads = [x], None, []
    state = Decoding(
        x,
        query.double() * gain.double() if dtype == torch.float64 else query.float() * gain.float(),
        Reads(ends, EPS),
    )
    for index in range(ends[-1] + 1):
        sources = done if partial is None else [*done, partial]
        h = x if index == 0 else depth_attention(sources, query[index - 1], gain[index - 1], EPS)
        reads.append((state.read(), h))
        if index < ends[-1]:
            out = torch.tanh(
                h @ torch.randn(dim, dim, generator=make, dtype=torch.float64).to(dtype)
            )
            state = state.push(out)
            partial = out if partial is None else partial + out
            if index + 1 in ends:
                done, partial = [*done, partial], None
    return reads, state.weights(), depth_weights(sources, query[-1], gain[-1], EPS)


@pytest.mark.parametrize(
    "ends", [(1,), (5,), (3, 6, 7), (1, 9, 10), tuple(range(1, 13)), tuple(range(1, 131))], ids=str
)
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_reads_and_weights_equal_the_naive_ones(ends, scale):
    reads, weights, expected = walk(ends, scale=scale)
    for ours, naive in reads:
        torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(weights, expected, rtol=1e-8, atol=1e-10)


def test_low_precision_is_kept_outside_and_full_precision_inside():
    reads, weights, _ = walk((3, 6, 7), dtype=torch.bfloat16)
    assert weights.dtype == torch.float32
    for ours, naive in reads:
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, naive, rtol=0.02, atol=0.02)


def test_only_few_tokens_without_gradients_are_read_this_way():
    few, many = torch.zeros(1, 1, 64), torch.zeros(1, FEW // 64 + 1, 64)
    assert not serves(few)
    with torch.no_grad():
        assert serves(few)
        assert not serves(many)


@pytest.mark.parametrize(
    "residual", [FullConfig(), BlockConfig(block_size=4)], ids=lambda r: r.label
)
def test_a_model_computes_the_same_with_and_without_gradients(residual):
    model = Transformer(
        ModelConfig(vocab_size=64, dim=32, num_layers=3, num_heads=2, residual=residual)
    ).double()
    torch.nn.init.normal_(model.residual.pseudo_query, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = model(tokens)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "residual", [FullConfig(), BlockConfig(block_size=4)], ids=lambda r: r.label
)
def test_a_bf16_models_queries_are_not_rounded_again(residual):
    """Both ways take the product of query and gain in fp32."""
    model = Transformer(
        ModelConfig(vocab_size=64, dim=32, num_layers=3, num_heads=2, residual=residual)
    ).to(torch.bfloat16)
    model.residual.pseudo_query.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    model.residual.key_gain.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
    ours, theirs = [], []
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    model.residual.observer = lambda index, names, weights: theirs.append(weights)
    model(tokens)
    model.residual.observer = lambda index, names, weights: ours.append(weights)
    with torch.no_grad():
        model(tokens)
    # the first read's sources are the same bits both ways
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
