"""Every way of weighing sources, on every fast path, equals the naive reads: values, weights and
all gradients.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from attnres_lab.ops import Weighing, lean, naive
from attnres_lab.ops.decoding import Decoding
from attnres_lab.ops.reads import Reads
from attnres_lab.ops.twophase import TwoPhase

EPS, D = 1e-6, 16
WEIGHINGS = [
    Weighing(),
    Weighing("sigmoid"),
    Weighing("static"),
    Weighing("static", temperature=0.5),
    Weighing(key_norm=False),
    Weighing(heads=4),
    Weighing(heads=16),
    Weighing(temperature=2.0),
    Weighing("sigmoid", 2, key_norm=False, temperature=0.5),
    Weighing(heads=4, key_norm=False),
]
SHAPES = [
    {"ends": (1, 2, 3, 4, 5, 6)},
    {"ends": (1, 2, 3, 4, 5, 6), "window": 1},
    {"ends": (1, 2, 3, 4, 5, 6), "window": 3},
    {"ends": (3, 6, 7)},
    {"ends": (3, 6, 7), "output": False},
    {"ends": (2, 4, 5), "starts": frozenset({1})},
    {"ends": (1, 2, 3, 4), "starts": frozenset({1, 3})},
    {"ends": tuple(range(1, 34)), "output": False},
]


class Net:
    """Sublayers tanh(h W) between reads."""

    def __init__(self, reads, dtype=torch.float64, seed=0):
        make = torch.Generator().manual_seed(seed)

        def draw(*shape):
            x = torch.randn(*shape, generator=make, dtype=torch.float64).to(dtype)
            return x.requires_grad_()

        self.reads, how = reads, reads.weighing
        count = reads.ends[-1]
        self.x = draw(2, 5, D)
        if how.mixing == "static":
            self.query, self.gain = draw(int(reads.seen.sum())), None
        else:
            self.query = draw(reads.count, D)
            self.gain = draw(reads.count, D) if how.key_norm else None
        self.matrices = [draw(D, D) for _ in range(count)]
        leaves = [self.x, self.query, self.gain, *self.matrices]
        self.leaves = [leaf for leaf in leaves if leaf is not None]

    def folded(self):
        query = self.query
        if self.reads.weighing.mixing == "static":
            query = self.reads.logits(query)
        return self.reads.weighing.query(query, self.gain)

    def sublayers(self):
        return [lambda h, w=w: torch.tanh(h @ w / D**0.5) for w in self.matrices]

    def by_definition(self, read=naive.depth_attention):
        """Hidden states, the last read or sum among them, and the weights of the reads."""
        reads, how = self.reads, self.reads.weighing
        done, partial, hidden, weights = [self.x], None, [], []
        counts = reads.seen.sum(1).tolist()
        parts = self.query.split(counts) if how.mixing == "static" else self.query.unbind()
        for index in range(len(self.matrices) + 1):
            window = reads.window or len(done)
            sources = [done[0], *done[1:][-window:]] + ([] if partial is None else [partial])
            if index == 0:
                hidden.append(self.x)
            elif index > reads.count:
                hidden.append(sum(sources))
            else:
                gain = None if self.gain is None else self.gain[index - 1]
                problem = (sources, parts[index - 1], gain, EPS, how)
                hidden.append(read(*problem))
                weights.append(naive.depth_weights(*problem))
            if index < len(self.matrices):
                out = self.sublayers()[index](hidden[-1])
                partial = out if partial is None else partial + out
                if index + 1 in reads.ends:
                    done, partial = [*done, partial], None
        return hidden, weights

    def scheduled(self, kind):
        state = kind(self.x, self.folded(), self.reads)
        hidden, weights = [], []
        for index, sublayer in enumerate(self.sublayers()):
            hidden.append(state.read())
            weights += [state.weights()] if index else []
            state = state.push(sublayer(hidden[-1]))
        if not self.reads.output and isinstance(state, TwoPhase):
            return [*hidden, state.sum()], weights
        hidden.append(state.read())
        return hidden, [*weights, state.weights()] if self.reads.output else weights


def gradients(hidden, leaves):
    """Of a random linear function of all hidden states."""
    make = torch.Generator().manual_seed(1)
    loss = sum((h * torch.randn(h.shape, generator=make).to(h.dtype)).sum() for h in hidden)
    return torch.autograd.grad(loss, leaves)


def assert_same(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        scale = float(b.detach().abs().max() + 1)
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


CASES = list(itertools.product(WEIGHINGS, SHAPES))


@pytest.mark.parametrize(("how", "shape"), CASES, ids=str)
def test_the_schedule_equals_the_definition(how, shape):
    net = Net(Reads(eps=EPS, weighing=how, **shape))
    (ours, our_weights), (theirs, their_weights) = (
        net.scheduled(TwoPhase.start),
        net.by_definition(),
    )
    assert_same(ours, theirs, 1e-12)
    assert_same(our_weights, their_weights, 1e-12)
    assert_same(gradients(ours, net.leaves), gradients(theirs, net.leaves), 1e-11)


def in_precision(how, dtype, fast):
    """Hidden states and gradients of the definition in float64, of ``fast(net)`` in ``dtype`` and
    of the definition in it.
    """
    reads = Reads((1, 2, 3, 4, 5, 6), EPS, how)
    exact, net = Net(reads), Net(reads, dtype)
    reading = [(exact.by_definition(), exact), (fast(net), net), (net.by_definition(), net)]
    return ([*hidden, *gradients(hidden, of.leaves)] for (hidden, *_), of in reading)


def assert_errs_at_most_twice(ours, theirs, truth, dtype):
    for a, b, c in zip(ours, theirs, truth, strict=True):
        unit = 16 * torch.finfo(dtype).eps * float(c.detach().abs().max() + 1)
        assert (a.double() - c).abs().max() <= 2 * (b.double() - c).abs().max() + unit


@pytest.mark.parametrize("how", WEIGHINGS, ids=str)
def test_the_schedule_in_single_precision(how):
    """Errs at most twice as much as the definition, measured against float64."""
    truth, ours, theirs = in_precision(how, torch.float32, lambda n: n.scheduled(TwoPhase.start))
    assert_errs_at_most_twice(ours, theirs, truth, torch.float32)


@pytest.mark.parametrize(("how", "shape"), CASES, ids=str)
def test_reads_of_few_tokens_equal_the_definition(how, shape):
    net = Net(Reads(eps=EPS, weighing=how, **shape))
    with torch.no_grad():
        ours, theirs = net.scheduled(Decoding), net.by_definition()
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b, 1e-12)


@pytest.mark.parametrize("how", WEIGHINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_lean_read_equals_the_definition(how, dtype):
    """In low precision it errs at most twice as much."""
    truth, ours, theirs = in_precision(
        how, dtype, lambda net: net.by_definition(lean.depth_attention)
    )
    if dtype == torch.float64:
        return assert_same(ours, truth, 1e-12)
    assert_errs_at_most_twice(ours, theirs, truth, dtype)


@pytest.mark.parametrize("how", WEIGHINGS, ids=str)
def test_the_lean_read_is_a_sound_operator(how):
    sources = [torch.randn(4, D, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    query = torch.randn(3 if how.mixing == "static" else D, dtype=torch.float64).requires_grad_()
    arguments = (sources, query, EPS, how.mixing, how.heads, how.key_norm)
    torch.library.opcheck(lean.depth_read, arguments)


def test_heads_must_divide_the_width():
    from attnres_lab import ops

    with pytest.raises(ValueError, match="3 heads do not divide the sources' width 16"):
        ops.depth_attention(
            [torch.ones(2, D)], torch.ones(D), torch.ones(D), EPS, Weighing(heads=3)
        )
