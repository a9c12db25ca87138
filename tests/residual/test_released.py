"""Our streams agree with the released models that transformers ships: mHC with deepseek_v4, iHC
with hy_v4_vl, gated residual streams with qwen4_exp. Everything in fp32, as the models do.
"""

import warnings
from types import SimpleNamespace

import pytest
import torch
from conformance import D
from test_reference import run, sublayers

from attnres_lab.residual.gated import GatedConfig, GatedStreams
from attnres_lab.residual.mhc import ManifoldHyperConnections, MHCConfig

pytest.importorskip("transformers")

L, N, EPS = 6, 4, 1e-6
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def released(module, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = pytest.importorskip(f"transformers.models.{module}.modeling_{module}")
    return getattr(models, name)


def spread(residual, std=0.5):
    """The parameters off their start."""
    generator = torch.Generator().manual_seed(0)
    for parameter in residual.parameters():
        parameter.data += std * torch.randn(parameter.shape, generator=generator)
    return residual


def functions():
    return [lambda h, f=f: f(h.double()).float() for f in sublayers(L)]


def embedding():
    return torch.randn(2, 3, D, generator=torch.Generator().manual_seed(1))


def agree(residual, module, step, finish, prepare):
    """Output and gradient of the embedding, ours and theirs."""
    results = []
    for theirs in (False, True):
        x = embedding().requires_grad_()
        if theirs:
            streams = x.unsqueeze(2).expand(-1, -1, N, -1)
            for site, f in zip(residual.sites, functions(), strict=False):
                streams = step(prepare(module, site), streams, f)
            out = finish(streams)
        else:
            out = run(residual, x, functions())
        (gradient,) = torch.autograd.grad(out.square().mean(), x)
        results.append((out.detach(), gradient))
    for ours, other in zip(*results, strict=True):
        torch.testing.assert_close(ours, other, **TOLERANCE)


def hyper_config(**more):
    return SimpleNamespace(
        hc_mult=N, hidden_size=D, hc_eps=0.0, rms_norm_eps=EPS, hc_sinkhorn_iters=20, **more
    )


def hyper_site(module, site):
    module.fn.data, module.base.data, module.scale.data = site.projection.T, site.bias, site.gate
    return module


def test_ihc_is_that_of_hy_v4_vl():
    residual = spread(ManifoldHyperConnections(MHCConfig(mixing="identity"), L, D, EPS))
    module = released("hy_v4_vl", "HYV4VLHyperConnection")(hyper_config(hc_magnitude=2.0))

    def step(site, streams, f):
        write, h = site(streams)
        return write.unsqueeze(-1) * f(h).unsqueeze(-2) + streams

    agree(residual, module, step, lambda streams: streams.sum(2), hyper_site)


def test_mhc_is_that_of_deepseek_v4():
    """A site's coefficients. Their mixing is [source, target], the transpose of ours; logits around
    zero, where 20 rounds converge, whichever normalisation is the last.
    """
    residual = spread(ManifoldHyperConnections(MHCConfig(), L, D, EPS))
    for site in list(residual.sites)[1:-1]:
        site.bias.data[2 * N :] *= 0.1
    module = released("deepseek_v4", "DeepseekV4HyperConnection")(hyper_config())
    streams = torch.randn(2, 3, N, D, generator=torch.Generator().manual_seed(2))
    for site in list(residual.sites)[1:-1]:
        ours = site(streams)
        # their logits, [source, target], are the transpose of ours
        order = torch.arange(N * N).view(N, N).T.flatten()
        order = torch.cat([torch.arange(2 * N), 2 * N + order])
        module.fn.data = site.projection.T[order]
        module.base.data, module.scale.data = site.bias[order], site.gate
        write, mix, h = module(streams)
        torch.testing.assert_close(ours.write, write, **TOLERANCE)
        torch.testing.assert_close(
            torch.einsum("...n,...nd->...d", ours.read, streams), h, **TOLERANCE
        )
        torch.testing.assert_close(ours.mix, mix.mT, **TOLERANCE)


def test_gated_streams_are_those_of_qwen4_exp():
    """Their mean enters the sublayer as it is, ours through the sublayer's own PreNorm, which is no
    part of this comparison.
    """
    rank = 3
    residual = spread(GatedStreams(GatedConfig(streams=N, rank=rank), L, D, EPS))
    config = SimpleNamespace(hc_count=N, hidden_size=D, hc_lowrank=rank, rms_norm_eps=EPS)
    gated = released("qwen4_exp", "Qwen4ExpTextGatedResidual")

    def prepare(_, site):
        module = gated(config, use_combine=site.inject is not None)
        module.hc_norm.weight.data = site.gain.flatten() - 1  # theirs is around zero
        module.input_mix_weight_down.weight.data = site.down
        module.input_mix_weight_up.weight.data = site.up
        if site.inject is not None:
            module.block_inject_weight.weight.data = site.inject
        return module

    def step(site, streams, f):
        h, flat, write = site(streams.flatten(-2))
        return (flat + (f(h).unsqueeze(-2) * write.unsqueeze(-1)).flatten(-2)).unflatten(-1, (N, D))

    def finish(streams):
        return prepare(None, residual.sites[-1])(streams.flatten(-2))

    agree(residual, None, step, finish, prepare)
