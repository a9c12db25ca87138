"""Variants that reach into attention, value residual and MUDDFormer: against their definitions in
reference_rivals.py, planted bugs, and what they ask of the trunk.
"""

import pytest
import reference_rivals
import torch
from conformance import D, build, check_starts_as_baseline, loss
from test_reference import EPS, assert_agrees, random, randomised
from torch.utils.flop_counter import FlopCounterMode

from attnres_lab.config import load
from attnres_lab.errors import UserError
from attnres_lab.mixers import MixersConfig
from attnres_lab.mixers.attention import AttentionConfig
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.model.flops import forward_flops_per_token
from attnres_lab.residual.mudd import MUDD, MUDDConfig
from attnres_lab.residual.value import ValueConfig, ValueResidual

L = 8
APART = [ValueConfig(), MUDDConfig(), MUDDConfig(norms=True), MUDDConfig(ways="r")]


class Attention:
    """A stand-in that tells queries, keys and values apart; a position sees those before it."""

    def __init__(self, number):
        self.q, self.k, self.v = (
            random(D, D, seed=100 * n + number).detach() / 4 for n in (1, 2, 3)
        )

    def values_of(self, v):
        return v @ self.v

    def attend(self, q, k, values):
        return torch.tanh(q @ self.q) * (torch.tanh(k @ self.k) * values).cumsum(1)

    def __call__(self, x, kv_BTD=None, values=None):
        k, v = (x, x) if kv_BTD is None else kv_BTD
        v = self.values_of(v)
        return self.attend(x, k, v if values is None else values(v))


def sublayers(count):
    """Attention, MLP, attention, MLP, ..."""
    mlps = [random(D, D, seed=900 + n).detach() / 4 for n in range(count)]
    return [
        (lambda h, m=mlps[n]: torch.tanh(h @ m)) if n % 2 else Attention(n) for n in range(count)
    ]


def check_value(weight=0.0):
    residual = randomised(ValueResidual(ValueConfig(weight=weight), L, D, EPS))
    assert_agrees(
        residual,
        L,
        lambda x, fs: reference_rivals.value_residual(x, fs, residual.lambdas),
        sublayers,
    )


def check_mudd(**options):
    residual = randomised(MUDD(MUDDConfig(**options), L, D, EPS))
    sites = [
        {"w1": a.w1, "w2": a.w2, "static": a.static, "pre": residual.pre_gain, "post": a.post_gain}
        for a in residual.aggregates
    ]
    assert_agrees(residual, L, lambda x, fs: reference_rivals.mudd(x, fs, sites, EPS), sublayers)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_value_residual(weight):
    check_value(weight)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("ways", ["qkvr", "r"])
def test_mudd(ways, norms):
    check_mudd(ways=ways, norms=norms)


def assert_caught(monkeypatch, residual, planted, config, check):
    """The check holds, and fails for the planted step, with which it still starts as the
    baseline.
    """
    check()
    monkeypatch.setattr(residual, "step", planted)
    check_starts_as_baseline(config)
    with pytest.raises(AssertionError):
        check()


def test_values_of_the_wrong_layer_are_caught(monkeypatch):
    """Those of the layer before in place of the first's: still the baseline at the start."""
    step = ValueResidual.step

    def planted(self, state, sublayer, index):
        latest = []

        def keep(h, **keywords):
            if values := keywords.pop("values", None):
                keywords["values"] = lambda v: (latest.append(v), values(v))[1]
            return sublayer(h, **keywords)

        after = step(self, state, keep, index)
        return after._replace(first=latest[0]) if latest else after

    assert_caught(monkeypatch, ValueResidual, planted, ValueConfig(), check_value)


@pytest.mark.parametrize("order", [[0, 2, 1, 3], [3, 1, 2, 0]], ids=["k and v", "q and r"])
def test_streams_that_are_swapped_are_caught(monkeypatch, order):
    start = MUDD.step

    def planted(self, state, sublayer, index):
        if len(state.streams) == 4:
            state = state._replace(streams=tuple(state.streams[i] for i in order))
        return start(self, state, sublayer, index)

    assert_caught(monkeypatch, MUDD, planted, MUDDConfig(), check_mudd)


def test_sources_taken_after_their_own_aggregation_are_caught(monkeypatch):
    step = MUDD.step

    def planted(self, state, sublayer, index):
        after = step(self, state, sublayer, index)
        changed = (*after.sources[:-1], after.streams[-1]) if index % 2 else after.sources
        return after._replace(sources=changed)

    assert_caught(monkeypatch, MUDD, planted, MUDDConfig(), check_mudd)


def test_mudd_learns_from_the_start():
    """W2 at zero beside W1 at random: the first step moves it, the second W1 too."""
    model = build(MUDDConfig())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for moved in ({"w2", "static"}, {"w1", "w2", "static"}):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        named = dict(model.residual.named_parameters())
        assert {n.rpartition(".")[2] for n, p in named.items() if p.grad.any()} == moved


@pytest.mark.parametrize("config", APART, ids=lambda c: c.label)
@pytest.mark.parametrize("bias", [False, True])
def test_flops_and_recomputation_of_a_whole_model(config, bias):
    """FLOPs as torch counts them, grouped heads and biases too; recomputing activations changes no
    gradient.
    """
    mixers = MixersConfig(attention=AttentionConfig(bias=bias))
    options = {"num_kv_heads": 2, "mixers": mixers, "residual": config}
    models = [
        Transformer(ModelConfig(11, D, 3, 4, activation_checkpointing=saved, **options), seed=3)
        for saved in (False, True)
    ]
    for model in models:
        for n, parameter in enumerate(model.residual.parameters()):
            parameter.data += random(*parameter.shape, seed=n).detach().float() / 2
        loss(model).backward()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        models[0](torch.zeros(2, 7, dtype=torch.long))
    assert counter.get_total_flops() == 14 * forward_flops_per_token(models[0].config, 7)


@pytest.mark.parametrize(
    ("residual", "pattern", "message"),
    [
        ("value", "[kda]", "model.mixers.pattern: value changes .* kda is none; take attention in"),
        ("mudd", "[attention, mla]", "model.mixers.pattern: mudd .* mla is none; .* ways: r"),
        ("{name: mudd, ways: r}", "[kda, mla]", ""),
    ],
)
def test_other_mixers_are_refused_at_load(tmp_path, residual, pattern, message):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {{dim: 64, num_layers: 4, residual: {residual}, mixers: {{pattern: {pattern}}}}}\n"
        "budget: 2 steps\n"
    )
    if not message:
        assert load(path).model.residual.label == "mudd-r"
        return
    with pytest.raises(UserError, match=rf"run\.yaml:1: {message}"):
        load(path)
