"""The methods that the field compares agree with their definitions, written again in
reference_rivals.py; planted bugs are caught.
"""

import pytest
import reference
import reference_rivals
import torch
from conformance import TINY_EPS, D, build, check_starts_as_baseline, loss
from test_reference import EPS, assert_agrees, randomised, reads_of, reads_with_options

from attnres_lab.residual.ddl import DDL, DDLConfig
from attnres_lab.residual.delta import Delta, DeltaConfig
from attnres_lab.residual.frac import FracConfig, FracConnections
from attnres_lab.residual.gated import GatedConfig, GatedStreams
from attnres_lab.residual.rmsblock import RMSBlock, RMSBlockConfig
from attnres_lab.residual.x0 import X0, X0Config

L = 8


def check_rms_block(size=3, sizes=(3, 3, 2)):
    residual = randomised(RMSBlock(RMSBlockConfig(block_size=size), L, D, EPS))
    assert_agrees(
        residual,
        L,
        lambda x, fs: reference_rivals.rms_block(x, fs, reads_of(residual), sizes),
    )


@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 8), (3, [3, 3, 2]), (8, [8])])
def test_rms_block(size, sizes):
    check_rms_block(size, sizes)


def test_rms_block_with_options():
    config = RMSBlockConfig(block_size=3, mixing="sigmoid", heads=2)
    residual = randomised(RMSBlock(config, L, D, EPS))
    reads = list(reads_with_options(residual, config))
    assert_agrees(residual, L, lambda x, fs: reference_rivals.rms_block(x, fs, reads, [3, 3, 2]))


def check_frac(parts=4, dynamic=True):
    residual = randomised(FracConnections(FracConfig(parts=parts, dynamic=dynamic), L, D, EPS))

    def moves(site):
        return lambda part: torch.tanh(reference_rivals.unit_rms(part, EPS) @ site.projection)

    sites = [
        {
            "read": site.read,
            "mix": site.mix,
            "write": site.write,
            "scale": site.scale if dynamic else None,
            "moves": moves(site) if dynamic else None,
        }
        for site in residual.sites
    ]
    assert_agrees(residual, L, lambda x, fs: reference_rivals.frac(x, fs, sites))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("parts", [2, 4])
def test_frac_connections(parts, dynamic):
    check_frac(parts, dynamic)


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_delta_block(size, gate, null):
    config = DeltaConfig(block_size=size, gate=gate, null_source=null, query_std=0.02 * gate)
    residual = randomised(Delta(config, L, D, EPS))
    reads = [
        reference.Read(q, g, EPS)
        for q, g in zip(residual.pseudo_query, residual.key_gain, strict=True)
    ]
    assert_agrees(
        residual,
        L,
        lambda x, fs: reference_rivals.delta_block(x, fs, reads, size, residual.gate, null),
    )


def test_ddl():
    residual = randomised(DDL(DDLConfig(), L, D, EPS))
    weights = list(
        zip(residual.gate, residual.gate_bias, residual.value, residual.value_bias, strict=True)
    )
    assert_agrees(residual, L, lambda x, fs: reference_rivals.ddl(x, fs, weights, EPS))


def test_x0():
    residual = randomised(X0(X0Config(), L, D, EPS))
    assert_agrees(residual, L, lambda x, fs: reference_rivals.x0(x, fs, residual.lambdas))


@pytest.mark.parametrize("streams", [2, 4])
def test_gated_streams(streams):
    residual = randomised(GatedStreams(GatedConfig(streams=streams, rank=3), L, D, EPS))
    assert_agrees(residual, L, lambda x, fs: reference_rivals.gated(x, fs, residual.sites, EPS))


def test_gated_streams_come_apart():
    """Equal streams and no random numbers, and yet the writes to them get gradients that differ."""
    model = build(GatedConfig())
    loss(model).backward()
    for site in model.residual.sites[:-1]:
        gradient = site.inject.grad
        assert gradient.std(0).norm() / gradient.norm() > 0.01


def test_a_gate_beside_zero_queries_would_never_learn():
    """Why the config refuses it: without the norm's eps, neither has a gradient."""
    model = build(DeltaConfig(gate=True, query_std=0.02), norm_eps=TINY_EPS)
    loss(model).backward()
    assert model.residual.gate.grad.abs().min() > 1e-6
    model.zero_grad()
    torch.nn.init.zeros_(model.residual.pseudo_query)
    loss(model).backward()
    assert all(parameter.grad.abs().max() < 1e-12 for parameter in model.residual.parameters())


@pytest.fixture
def running_norm(monkeypatch):
    """The norm of the running sum of a block in place of the sum of norms."""
    step = RMSBlock.step

    def planted(self, state, sublayer, index):
        before = state.sources.partial
        seen = {}

        def keep(h):
            seen["out"] = sublayer(h)
            return seen["out"]

        after = step(self, state, keep, index)
        if index + 1 in self.ends:
            total = seen["out"] if before is None else before + seen["out"]
            done = (*after.sources.done[:-1], reference_rivals.unit_rms(total, 1e-6))
            after = after._replace(sources=after.sources._replace(done=done))
        return after

    monkeypatch.setattr(RMSBlock, "step", planted)


@pytest.mark.usefixtures("running_norm")
def test_a_running_norm_in_rms_block_is_caught():
    with pytest.raises(AssertionError):
        check_rms_block()


def test_parts_along_the_wrong_axis_are_caught(monkeypatch):
    """Interleaved parts (channel i to part i mod M): still the baseline at the start, so only the
    reference sees it.
    """
    monkeypatch.setattr(
        FracConnections,
        "_cut",
        lambda self, x: x.view(*x.shape[:-1], -1, self.config.parts).mT,
    )
    monkeypatch.setattr(FracConnections, "finish", lambda self, state: state.mT.flatten(-2))
    with pytest.raises(AssertionError):
        check_frac()


def test_a_gate_that_is_not_shut_is_caught():
    config = DeltaConfig(block_size=3, gate=True, query_std=0.5)
    check_starts_as_baseline(config)

    def opened(self, generator):
        torch.nn.init.ones_(self.gate)
        torch.nn.init.normal_(self.pseudo_query, std=0.5, generator=generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Delta, "draw", opened)
        with pytest.raises(AssertionError):
            check_starts_as_baseline(config)
