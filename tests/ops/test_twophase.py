"""The two-phase schedule equals naive reads, in values and all gradients, however it is used."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from attnres_lab.ops.naive import depth_attention
from attnres_lab.ops.reads import Reads
from attnres_lab.ops.twophase import TwoPhase

EPS = 1e-6
SHAPES = [
    (6, 8, (1, 2, 3, 4, 5, 6)),
    (1, 8, (1,)),
    (7, 64, (3, 6, 7)),
    (12, 40, tuple(range(1, 13))),
    (5, 8, (5,)),
    (8, 16, (2, 4, 6, 8)),
    (10, 16, (1, 9, 10)),
]


class Net:
    """Sublayers tanh(h W) between reads; ``naive`` is the schedule written out with the
    definition.
    """

    def __init__(self, num_sublayers, dim, ends, seed=0, scale=1.0, tokens=(2, 5)):
        make = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=make, dtype=torch.float64)

        self.ends = ends
        self.x, self.query, self.gain = (
            draw(*tokens, dim),
            draw(num_sublayers, dim) * scale,
            draw(num_sublayers, dim),
        )
        self.matrices = [draw(dim, dim) / dim**0.5 for _ in range(num_sublayers)]
        self.leaves = [self.x, self.query, self.gain, *self.matrices]
        for leaf in self.leaves:
            leaf.requires_grad_()

    def naive(self, call=lambda f, h: f(h)):
        done, partial, reads = [self.x], None, []
        for index in range(len(self.matrices) + 1):
            sources = done if partial is None else [*done, partial]
            h = (
                self.x
                if index == 0
                else depth_attention(sources, self.query[index - 1], self.gain[index - 1], EPS)
            )
            reads.append(h)
            if index < len(self.matrices):
                out = call(lambda h, w=self.matrices[index]: torch.tanh(h @ w), h)
                partial = out if partial is None else partial + out
                if index + 1 in self.ends:
                    done, partial = [*done, partial], None
        return reads

    def fast(self, call=lambda f, h: f(h), phases=None):
        state = TwoPhase.start(
            self.x,
            self.query * self.gain,
            Reads(self.ends, EPS, starts=frozenset(phases) if phases else None),
        )
        reads = []
        for w in self.matrices:
            reads.append(state.read())
            state = state.push(call(lambda h, w=w: torch.tanh(h @ w), reads[-1]))
        return [*reads, state.read()]


def gradients(reads, leaves, seed=1):
    """Of a random linear function of all reads; every read feeds the loss as well as its
    sublayer.
    """
    make = torch.Generator().manual_seed(seed)
    loss = sum((h * torch.randn(h.shape, generator=make, dtype=h.dtype)).sum() for h in reads)
    return torch.autograd.grad(loss, leaves)


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * float(b.detach().abs().max() + 1))


@pytest.mark.parametrize("phases", [None, "every read", "one"])
@pytest.mark.parametrize(("num_sublayers", "dim", "ends"), SHAPES)
def test_values_and_all_gradients_equal_naive_reads(num_sublayers, dim, ends, phases):
    """For Full, Block with even and uneven blocks, and any placement of phase 1."""
    net = Net(num_sublayers, dim, ends)
    chosen = {None: None, "every read": range(1, num_sublayers + 1), "one": (1,)}[phases]
    ours, theirs = net.fast(phases=chosen), net.naive()
    assert_same(ours, theirs)
    assert_same(gradients(ours, net.leaves), gradients(theirs, net.leaves))


@pytest.mark.parametrize("tokens", [(1, 1), (1,), (3, 1, 2)])
def test_any_leading_shape(tokens):
    net = Net(4, 8, (2, 4), tokens=tokens)
    assert_same(gradients(net.fast(), net.leaves), gradients(net.naive(), net.leaves))


def test_130_sources():
    net = Net(129, 4, tuple(range(1, 130)))
    assert_same(gradients(net.fast(), net.leaves), gradients(net.naive(), net.leaves))


def test_logits_of_80_and_sources_of_very_different_size():
    net = Net(6, 16, (1, 2, 3, 4, 5, 6), scale=15.0)
    with torch.no_grad():
        net.x *= 1e4
        net.matrices[2].zero_()  # a zero source
    assert_same(net.fast(), net.naive())
    assert_same(gradients(net.fast(), net.leaves), gradients(net.naive(), net.leaves))


def test_several_forward_passes_before_a_backward_pass():
    net = Net(6, 16, (2, 4, 6))
    first, second = net.fast(), net.fast()
    assert_same(
        gradients([*first, *second], net.leaves),
        gradients([*net.naive(), *net.naive()], net.leaves),
    )


def test_a_second_backward_pass_through_a_kept_graph_and_one_from_the_middle():
    """Nothing of a pass is left over for the next one."""
    net = Net(6, 16, (1, 2, 3, 4, 5, 6))
    ours, theirs = net.fast(), net.naive()
    for index in (6, 3, 6, 5):
        a = torch.autograd.grad(
            ours[index].square().sum(), net.leaves, retain_graph=True, allow_unused=True
        )
        b = torch.autograd.grad(
            theirs[index].square().sum(), net.leaves, retain_graph=True, allow_unused=True
        )
        assert_same(
            *zip(
                *(
                    (x, torch.zeros_like(x) if y is None else y)
                    for x, y in zip(a, b, strict=True)
                    if x is not None
                ),
                strict=True,
            )
        )


@pytest.mark.parametrize("reentrant", [False, True])
def test_sublayers_may_be_recomputed(reentrant):
    net = Net(6, 16, (2, 4, 6))

    def call(f, h):
        return checkpoint(f, h, use_reentrant=reentrant)

    ours = net.fast(call)[-1]
    ours.square().sum().backward()
    assert_same(
        [leaf.grad for leaf in net.leaves],
        torch.autograd.grad(net.naive()[-1].square().sum(), net.leaves),
    )


def test_the_whole_pass_may_be_recomputed():
    net = Net(6, 16, (2, 4, 6))

    def whole(x):
        net.x, kept = x, net.x
        try:
            return net.fast()[-1]
        finally:
            net.x = kept

    ours = checkpoint(whole, net.x, use_reentrant=False)
    assert_same(
        torch.autograd.grad(ours.square().sum(), net.leaves),
        torch.autograd.grad(net.naive()[-1].square().sum(), net.leaves),
    )


def test_frozen_inputs_and_no_grad():
    net = Net(6, 16, (1, 2, 3, 4, 5, 6))
    expected = gradients(net.naive(), net.leaves)
    net.x.requires_grad_(False)
    net.query.requires_grad_(False)
    assert_same(gradients(net.fast(), net.leaves[2:]), expected[2:])
    with torch.no_grad():
        assert_same(net.fast(), net.naive())
    with torch.inference_mode():
        assert_same(net.fast(), net.naive())


def test_rows_are_freed_by_the_backward_pass_and_the_graph_holds_no_cycle():
    net = Net(6, 16, (1, 2, 3, 4, 5, 6))
    state = TwoPhase.start(net.x, net.query * net.gain, Reads(net.ends, EPS))
    rows = weakref.ref(state.buffer.values.untyped_storage())
    buffer = weakref.ref(state.buffer)
    for w in net.matrices:
        state = state.push(torch.tanh(state.read() @ w))
    loss = state.read().sum()
    del state
    gc.disable()
    try:
        loss.backward()
        assert buffer() is not None
        assert not hasattr(buffer(), "values")
        assert buffer().backward_pass is None
        del loss
        assert buffer() is None
        assert rows() is None
    finally:
        gc.enable()


def test_memory_is_used_again_only_after_the_graph_that_holds_it():
    x, query = torch.randn(512, 512), torch.zeros(2, 512)

    def start():
        return TwoPhase.start(x.requires_grad_(), query, Reads((1, 2), EPS))

    def place(state):
        return state.buffer.values.data_ptr()

    first = start()
    old = place(first)
    h = first.push(x * 2).push(x * 3).read()
    del first
    assert place(start()) != old
    h.sum().backward()
    assert old in (place(start()), place(start()))


def test_weights_are_the_softmax_over_the_sources():
    net = Net(4, 8, (2, 4))
    with torch.no_grad():
        state = TwoPhase.start(net.x, net.query * net.gain, Reads(net.ends, EPS))
        for index, w in enumerate(net.matrices):
            h = state.read()
            if index:
                weights = state.weights()
                assert weights.shape == ([0, 2, 2, 3][index], 2, 5)
                torch.testing.assert_close(weights.sum(0), torch.ones(2, 5, dtype=torch.float64))
            state = state.push(torch.tanh(h @ w))


def test_a_state_is_stepped_once():
    """Its buffers go on with the next state: a second branch would overwrite the first one's."""
    net = Net(4, 8, (2, 4))
    state = TwoPhase.start(net.x, net.query * net.gain, Reads(net.ends, EPS))
    state.push(net.x)
    with pytest.raises(ValueError, match="already stepped"):
        state.push(net.x)
