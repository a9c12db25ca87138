"""Where residual parameters start, and what a read is scaled by."""

import dataclasses

import pytest
import torch
from conformance import D, T, check_starts_as_baseline, loss, tokens

from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.residual import BaselineConfig
from attnres_lab.residual.attnres import AttnRes, BlockConfig, FullConfig
from attnres_lab.residual.delta import DeltaConfig

SUMS = [
    FullConfig(scale="sum"),
    BlockConfig(block_size=5, scale="sum"),
    BlockConfig(num_blocks=8, scale="sum"),
    FullConfig(scale="sum", heads=4),
    FullConfig(scale="sum", mixing="sigmoid"),
    FullConfig(scale="sum", mixing="static"),
    FullConfig(scale="sum", key_norm=False),
    FullConfig(scale="sum", query="input"),
    BlockConfig(block_size=5, scale="sum", output_read=False),
]


def small_embeddings(residual, dtype=torch.float32):
    """12 layers, eps 1e-5 and embeddings of std 0.02, as in many released models."""
    model = Transformer(ModelConfig(64, D, 12, 2, norm_eps=1e-5, residual=residual), seed=3)
    model.embed.weight.data *= 0.02
    return model.to(dtype)


def distance(residual, dtype):
    """Rms difference of the logits from the baseline's, relative to their rms."""
    baseline = small_embeddings(BaselineConfig(), dtype)(tokens()).detach()
    logits = small_embeddings(residual, dtype)(tokens()).detach()
    return float((logits - baseline).norm() / baseline.norm())


@pytest.mark.parametrize("config", SUMS, ids=lambda config: config.label)
def test_reads_that_start_as_sums_are_the_baseline_at_any_eps(config):
    assert distance(config, torch.float32) < 1e-6
    assert distance(config, torch.float64) < 1e-13
    with torch.no_grad():  # through the schedules that serve passes without gradients
        assert distance(config, torch.float32) < 1e-6


@pytest.mark.parametrize("config", SUMS[:3], ids=lambda config: config.label)
def test_reads_that_start_as_means_are_not(config):
    assert distance(dataclasses.replace(config, scale="mean"), torch.float64) > 1e-3


@pytest.mark.parametrize("config", SUMS[:2], ids=lambda config: config.label)
def test_the_trunks_gradients_at_a_large_eps_are_the_baselines(config):
    models = [small_embeddings(c, torch.float64) for c in (config, BaselineConfig())]
    for model in models:
        loss(model).backward()
    for name, parameter in models[1].named_parameters():
        torch.testing.assert_close(
            models[0].get_parameter(name).grad, parameter.grad, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize(
    "config",
    [FullConfig(query_std=0.02), BlockConfig(heads=2, query_std=0.02), DeltaConfig(query_std=0.02)],
    ids=lambda config: config.label,
)
def test_queries_that_start_at_random(config):
    """Of the asked std, the same for the same seed, others for another, and not those numbers that
    the trunk draws.
    """

    def queries(seed, residual=config):
        model = Transformer(ModelConfig(64, 64, 12, 2, residual=residual), seed=seed)
        named = dict(model.residual.named_parameters())
        return model, next(p for n, p in named.items() if n.endswith("pseudo_query")).detach()

    model, first = queries(0)
    assert first.std() == pytest.approx(0.02, rel=0.1)
    assert first.mean().abs() < 0.002
    assert torch.equal(first, queries(0)[1])
    assert not torch.equal(first, queries(1)[1])
    drawn = model.embed.weight.flatten()[: first.numel()]
    assert torch.corrcoef(torch.stack([drawn, first.flatten()]))[0, 1].abs() < 0.15
    assert not queries(0, dataclasses.replace(config, query_std=0.0))[1].any()


def test_as_many_heads_as_kv_heads():
    config = ModelConfig(64, 64, 2, 8, num_kv_heads=2, residual=FullConfig(heads="kv"))
    assert config.connection == FullConfig(heads=2)
    model = Transformer(config)
    assert model.residual.weighing.heads == 2
    assert model(tokens()).shape == (2, T, 64)


def test_a_wrong_scale_is_caught(monkeypatch):
    """A factor of one source too many: conformance lets it pass, since its eps is next to zero."""
    proper = AttnRes.num_sources
    monkeypatch.setattr(AttnRes, "num_sources", lambda self, index: proper(self, index) + 1)
    check_starts_as_baseline(FullConfig(scale="sum"))
    assert distance(FullConfig(scale="sum"), torch.float64) > 1e-4
