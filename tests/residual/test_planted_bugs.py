"""The suite is sensitive: each bug that other implementations had is planted, and a named check
must fail on it.

The bugs are switches of one small naive Block AttnRes that takes the package's place; without a bug
it passes everything.
"""

import pytest
import reference
import torch
from conformance import (
    D,
    build,
    check_causal,
    check_decoding_agrees,
    check_sequences_are_independent,
    check_starts_as_baseline,
)
from test_reference import test_block_with_random_queries as check_reference

from attnres_lab.model import transformer as model_module
from attnres_lab.residual.attnres import AttnRes, BlockConfig


class Mutant:
    """start, step and finish of Block AttnRes with one bug."""

    def __init__(self, bug):
        self.bug = bug

    def start(self, residual, x):
        return [x], None, x

    def step(self, residual, state, sublayer, index):
        done, partial, stream = state
        h = done[0] if index == 0 else self.read(residual, state, index - 1)
        out = sublayer(h)
        stream = stream + out
        value = stream if self.bug == "running sums as sources" else out
        if partial is not None:
            partial = value if self.bug == "running sums as sources" else partial + value
        else:
            partial = done[0] + value if self.bug == "embedding doubled" and index == 0 else value
        closes = (
            index + (2 if self.bug == "boundary off by one" else 1) in residual.ends
            or index + 1 == residual.num_sublayers
        )
        return ([*done, partial], None, stream) if closes else (done, partial, stream)

    def finish(self, residual, state):
        if self.bug == "missing output read":
            return state[0][-1]
        return self.read(residual, state, residual.num_sublayers - 1)

    def read(self, residual, state, row):
        done, partial, _ = state
        sources = list(done) if partial is None else [*done, partial]
        if (
            partial is None
            and self.bug == "zero tensor at a boundary"
            and row + 1 < residual.num_sublayers
        ):
            sources.append(torch.zeros_like(done[0]))
        v = torch.stack(sources)
        keys = (
            v
            * (v.square().mean(-1, keepdim=True) + residual.norm_eps).rsqrt()
            * residual.key_gain[row]
        )
        alpha = (keys @ residual.pseudo_query[row]).softmax(
            {"softmax over the batch": 1, "softmax over time": 2}.get(self.bug, 0)
        )
        return (alpha[..., None] * v).sum(0)


def plant(monkeypatch, bug):
    mutant = Mutant(bug)
    monkeypatch.setattr(AttnRes, "start", lambda self, x: mutant.start(self, x))
    monkeypatch.setattr(
        AttnRes,
        "step",
        lambda self, state, sublayer, index: mutant.step(self, state, sublayer, index),
    )
    monkeypatch.setattr(AttnRes, "finish", lambda self, state: mutant.finish(self, state))


def identity():
    check_starts_as_baseline(BlockConfig(block_size=3))


def random_queries():
    check_reference({"block_size": 3}, [3, 3, 3, 1])


def decoding():
    check_decoding_agrees(BlockConfig(block_size=3))


def causality():
    check_causal(BlockConfig(block_size=3))


def independence():
    check_sequences_are_independent(BlockConfig(block_size=3))


#: bug -> the checks that catch it; the others of these five let it pass, and that is asserted too
CAUGHT_BY = {
    None: set(),
    "embedding doubled": {identity, random_queries},
    "running sums as sources": {identity, random_queries},
    "zero tensor at a boundary": {random_queries},
    "boundary off by one": {random_queries},
    "missing output read": {identity, random_queries},
    "softmax over the batch": {random_queries, independence},
    "softmax over time": {random_queries, decoding, causality},
}


@pytest.mark.parametrize(
    "check",
    [identity, random_queries, decoding, causality, independence],
    ids=lambda check: check.__name__,
)
@pytest.mark.parametrize("bug", CAUGHT_BY, ids=str)
def test_a_planted_bug_is_caught(monkeypatch, bug, check):
    plant(monkeypatch, bug)
    if check in CAUGHT_BY[bug]:
        with pytest.raises(AssertionError):
            check()
    else:
        check()


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_queries_that_the_generic_initialiser_overwrites_are_caught(monkeypatch, std):
    """The usual loop over all matrices, applied after the variant has made its zero queries."""
    proper = model_module.init_weights

    def generic(model, seed):
        proper(model, seed)
        for parameter in model.residual.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(
                    parameter, std=std, generator=torch.Generator().manual_seed(seed)
                )

    monkeypatch.setattr(model_module, "init_weights", generic)
    with pytest.raises(AssertionError):
        identity()


def test_queries_start_at_zero_and_gains_at_one():
    residual = build(BlockConfig()).residual
    assert not residual.pseudo_query.any()
    assert (residual.key_gain == 1).all()


def test_a_cap_on_the_number_of_sources_is_caught():
    """A kernel that silently drops the sources beyond 32 differs from the reference at 33."""
    sources = [
        torch.randn(2, D, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        for n in range(33)
    ]
    read = reference.Read(
        torch.ones(D, dtype=torch.float64), torch.ones(D, dtype=torch.float64), 1e-6
    )
    assert not torch.allclose(read(sources), read(sources[:32]), atol=1e-9)
