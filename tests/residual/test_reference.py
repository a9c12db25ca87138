"""The package agrees with the paper's equations as written in reference.py, gradients included."""

import itertools

import pytest
import reference
import torch
from conformance import TINY_EPS, D, build, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from attnres_lab import ops
from attnres_lab.residual.attnres import AttnRes, Block, BlockConfig, FullConfig

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
EPS = 1e-6


def random(*shape, seed=0):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).requires_grad_()


def sublayers(count):
    """Nonlinear stand-ins for attention and MLP, each different."""
    mixers = [random(D, D, seed=100 + n).detach() / D**0.5 for n in range(count)]
    return [lambda h, m=m: torch.tanh(h @ m) for m in mixers]


def run(residual, x, functions):
    state = residual.start(x)
    for index, f in enumerate(functions):
        state = residual.step(state, f, index)
    return residual.finish(state)


def randomised(residual):
    residual.double()
    for n, parameter in enumerate(residual.parameters()):
        parameter.data += random(*parameter.shape, seed=n).detach()
    return residual


def reads_of(residual):
    return [
        reference.Read(q, g, EPS)
        for q, g in zip(residual.pseudo_query, residual.key_gain, strict=True)
    ]


def assert_agrees(residual, count, expected_of, sublayers=sublayers):
    """Output, and the gradients of the embedding, the queries and the gains (to 33 sublayers;
    beyond, the reference's graph takes seconds).
    """
    x = random(2, 3, D, seed=9)
    leaves = [x, *residual.parameters()]
    probe = random(2, 3, D, seed=10).detach()
    with torch.set_grad_enabled(count <= 33):
        got = run(residual, x, sublayers(count))
        expected = expected_of(x, sublayers(count))
    torch.testing.assert_close(got, expected, **TOLERANCE)
    if count > 33:
        return
    for a, b in zip(
        torch.autograd.grad((got * probe).sum(), leaves),
        torch.autograd.grad((expected * probe).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 32, 33, 129])
def test_full_with_random_queries(count):
    """Up to 130 sources: no cap anywhere."""
    residual = randomised(AttnRes(FullConfig(), count, D, EPS))
    assert_agrees(residual, count, lambda x, fs: reference.full(x, fs, reads_of(residual)))


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({"block_size": 1}, [1] * 10),
        ({"block_size": 2}, [2, 2, 2, 2, 2]),
        ({"block_size": 3}, [3, 3, 3, 1]),
        ({"block_size": 4}, [4, 4, 2]),
        ({"block_size": 7}, [7, 3]),
        ({"block_size": 10}, [10]),
        ({"num_blocks": 1}, [10]),
        ({"num_blocks": 2}, [5, 5]),
        ({"num_blocks": 3}, [4, 3, 3]),
        ({"num_blocks": 4}, [3, 2, 3, 2]),
        ({"num_blocks": 7}, [2, 1, 2, 1, 2, 1, 1]),
        ({"num_blocks": 8}, [2, 1, 1, 1, 2, 1, 1, 1]),
        ({"num_blocks": 10}, [1] * 10),
        ({}, [2, 1, 1, 1, 2, 1, 1, 1]),
    ],
    ids=str,
)
def test_block_with_random_queries(config, sizes):
    """Ten sublayers, the blocks written out by hand; ragged and uneven ones among them."""
    residual = randomised(Block(BlockConfig(**config), 10, D, EPS))
    assert_agrees(residual, 10, lambda x, fs: reference.block(x, fs, reads_of(residual), sizes))


@pytest.mark.parametrize(("count", "blocks"), [(129, 64), (129, 8), (54, 9)])
def test_deep_block_with_random_queries(count, blocks):
    residual = randomised(Block(BlockConfig(num_blocks=blocks), count, D, EPS))
    closed = [-(-n * count // blocks) for n in range(blocks + 1)]
    sizes = [b - a for a, b in itertools.pairwise(closed)]
    assert_agrees(residual, count, lambda x, fs: reference.block(x, fs, reads_of(residual), sizes))


OPTIONS = [
    {"query": "input"},
    {"mixing": "sigmoid"},
    {"mixing": "static"},
    {"key_norm": False},
    {"heads": 4},
    {"temperature": 0.5},
    {"query": "input", "mixing": "sigmoid", "key_norm": False, "heads": 2, "temperature": 2.0},
]


def reads_with_options(residual, config):
    """The parameters of the package's general reads, in the reference's terms."""
    for parameters in residual.per_read():
        yield reference.Read(
            parameters.get("pseudo_query"),
            parameters.get("key_gain"),
            EPS,
            heads=config.heads,
            temperature=config.temperature,
            sigmoid=config.mixing == "sigmoid",
            projection=parameters.get("projection"),
            scalars=parameters.get("scalars"),
        )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_of_full(options):
    config = FullConfig(**options)
    residual = randomised(AttnRes(config, 7, D, EPS))
    assert_agrees(
        residual, 7, lambda x, fs: reference.full(x, fs, list(reads_with_options(residual, config)))
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_of_block(options):
    config = BlockConfig(block_size=3, **options)
    residual = randomised(Block(config, 7, D, EPS))
    assert_agrees(
        residual,
        7,
        lambda x, fs: reference.block(x, fs, list(reads_with_options(residual, config)), [3, 3, 1]),
    )


@pytest.mark.parametrize("window", [1, 2, 8, 11])
def test_window(window):
    """Each read, the output's included, sees the embedding and the latest outputs only."""
    config = FullConfig(window=window)
    residual = randomised(AttnRes(config, 12, D, EPS))
    assert_agrees(
        residual,
        12,
        lambda x, fs: reference.full(x, fs, list(reads_with_options(residual, config)), window),
    )


def test_without_output_read_the_sources_are_summed():
    config = FullConfig(output_read=False)
    residual = randomised(AttnRes(config, 7, D, EPS))
    reads = list(reads_with_options(residual, config))
    assert len(reads) == 6
    assert_agrees(
        residual, 7, lambda x, fs: reference.full(x, fs, [*reads, lambda sources: sum(sources)])
    )


@settings(deadline=None)
@given(num_sublayers=st.integers(1, 300), data=st.data())
def test_blocks_partition_the_sublayers(num_sublayers, data):
    """num_blocks: exactly that many, sizes differing by one at most; block_size: all equal but a
    shorter last one.
    """
    count = data.draw(st.integers(1, num_sublayers))
    ends = BlockConfig(num_blocks=count).ends(num_sublayers)
    sizes = [b - a for a, b in itertools.pairwise((0, *ends))]
    assert len(sizes) == count
    assert ends[-1] == num_sublayers
    assert max(sizes) - min(sizes) <= 1
    ends = BlockConfig(block_size=count).ends(num_sublayers)
    sizes = [b - a for a, b in itertools.pairwise((0, *ends))]
    assert ends[-1] == num_sublayers
    assert set(sizes[:-1]) <= {count}
    assert 1 <= sizes[-1] <= count


@settings(max_examples=10, deadline=None)
@given(
    count=st.integers(1, 130),
    width=st.integers(1, 9),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_operator(count, width, scale, seed):
    """One read over 1 to 130 sources of any scale and width."""
    sources = [scale * random(2, width, seed=1000 * seed + n) for n in range(count)]
    query, gain = random(width, seed=seed), random(width, seed=seed + 1)
    got = ops.depth_attention(sources, query, gain, EPS)
    expected = reference.Read(query, gain, EPS)(sources)
    torch.testing.assert_close(got / scale, expected / scale, **TOLERANCE)
    leaves = [query, gain]
    for a, b in zip(
        torch.autograd.grad(got.sum() / scale, leaves),
        torch.autograd.grad(expected.sum() / scale, leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 12])
def test_the_whole_transformer(size):
    """The model's own sublayers as black boxes: its logits are those of the reference."""
    model = build(BlockConfig(block_size=size), randomise=True)
    x, functions = model.embed(tokens()), list(model.sublayers)
    sizes = [size] * (12 // size) + ([12 % size] if 12 % size else [])
    reads = reads_of(model.residual)
    torch.testing.assert_close(
        model(tokens()),
        model.head(model.norm(reference.block(x, functions, reads, sizes))),
        **TOLERANCE,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_the_reference_too_has_the_identity(size):
    """Zero queries and unit gains: the reference is the plain sum, divided by the number of sources
    of the output read.
    """
    x, functions = random(2, 3, D, seed=9), sublayers(12)
    normalised = [lambda h, f=f: f(h / h.square().mean(-1, keepdim=True).sqrt()) for f in functions]
    reads = [
        reference.Read(
            torch.zeros(D, dtype=torch.float64), torch.ones(D, dtype=torch.float64), TINY_EPS
        )
    ] * 12
    h, stream = reference.block(x, normalised, reads, [size] * (12 // size)), x
    for f in normalised:
        stream = stream + f(stream)
    torch.testing.assert_close(h * (12 // size + 1), stream, **TOLERANCE)
