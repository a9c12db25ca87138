"""Probes measure what they say, change nothing, and leave nothing behind."""

import json
import math
import time

import pytest
import torch
import torch.nn.functional as F

from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.residual import REGISTRY, BaselineConfig
from attnres_lab.residual.attnres import BlockConfig, FullConfig
from attnres_lab.training.probe import Probe

B, T, D, VOCAB, LAYERS = 2, 12, 16, 11, 4


def build(residual, **options):
    return Transformer(ModelConfig(VOCAB, D, LAYERS, 2, residual=residual, **options), seed=1)


def loss(model):
    tokens = torch.randint(VOCAB, (B, T + 1), generator=torch.Generator().manual_seed(2))
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def watch(model, step=0, lr=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr) if lr else None
    with Probe(model) as probe:
        loss(model).backward()
        if optimizer:
            optimizer.step()
    return probe, probe.record(step)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", REGISTRY)
def test_magnitudes_and_gradients_are_those_of_autograd(name, checkpointing):
    """For every variant, with and without activation checkpointing, against tensors kept by
    hand.
    """
    _, record = watch(build(REGISTRY[name].Config(), activation_checkpointing=checkpointing))
    model = build(REGISTRY[name].Config())
    kept = []
    for sublayer in model.sublayers:
        sublayer.register_forward_hook(lambda module, args, out: kept.append((args[0], out)))
    total = loss(model)
    outputs = [out for _, out in kept]
    gradients = torch.autograd.grad(total, outputs)
    assert record["input_rms"] == pytest.approx([h.pow(2).mean().item() ** 0.5 for h, _ in kept])
    assert record["output_rms"] == pytest.approx(
        [out.pow(2).mean().item() ** 0.5 for out in outputs]
    )
    assert record["gradient_norm"] == pytest.approx(
        [g.pow(2).sum().item() ** 0.5 for g in gradients], rel=1e-4
    )
    assert record["update_ratio"] == []


def test_uniform_weights_have_the_entropy_and_the_depth_of_their_number():
    """Zero queries: each read is uniform over its sources."""
    _, record = watch(build(FullConfig()), step=7)
    assert record["step"] == 7
    assert [read["sublayer"] for read in record["reads"]] == list(range(1, 9))
    assert [read["kind"] for read in record["reads"]] == ["mlp", "attention"] * 3 + [
        "mlp",
        "output",
    ]
    for count, read in enumerate(record["reads"], 2):
        assert read["sources"] == ["embedding", *(f"f{n}" for n in range(1, count))]
        assert read["weights"] == pytest.approx([1 / count] * count)
        assert read["entropy"] == pytest.approx(math.log(count))
        assert read["effective_depth"] == pytest.approx(count)
        assert torch.tensor(read["weights_by_position"]).shape == (count, 8)


def test_sources_of_blocks_are_named():
    _, record = watch(build(BlockConfig(block_size=5)))
    assert [read["sources"] for read in record["reads"]] == [
        ["embedding", "partial"],
        ["embedding", "partial"],
        ["embedding", "partial"],
        ["embedding", "partial"],
        ["embedding", "b1"],
        ["embedding", "b1", "partial"],
        ["embedding", "b1", "partial"],
        ["embedding", "b1", "b2"],
    ]


def test_weights_of_a_decisive_query():
    """A query along the embedding of one constant token picks the embedding: entropy near 0,
    effective depth near 1.
    """
    model = build(FullConfig())
    model.embed.weight.data[:] = torch.ones(D)
    model.residual.pseudo_query.data[:] = 100.0
    _, record = watch(model)
    for read in record["reads"]:
        assert read["weights"][0] == pytest.approx(1, abs=1e-3)
        assert read["entropy"] == pytest.approx(0, abs=1e-2)
        assert read["effective_depth"] == pytest.approx(1, abs=1e-2)


def test_the_update_ratio_of_plain_gradient_descent():
    """SGD changes the weights by lr times the gradient."""
    model, lr = build(BlockConfig(num_blocks=2)), 0.1
    before = [[p.detach().clone() for p in sublayer.parameters()] for sublayer in model.sublayers]
    _, record = watch(model, lr=lr)
    for ratio, old, sublayer in zip(record["update_ratio"], before, model.sublayers, strict=True):
        gradient = torch.cat([p.grad.flatten() for p in sublayer.parameters()])
        assert ratio == pytest.approx(
            lr * gradient.norm().item() / torch.cat([p.flatten() for p in old]).norm().item(),
            rel=1e-3,
        )


@pytest.mark.parametrize("config", [BaselineConfig(), FullConfig()])
def test_a_probe_changes_nothing_and_leaves_nothing(config):
    """Gradients are bit-identical with and without it, and a forward pass afterwards is not
    recorded.
    """
    watched, plain = build(config), build(config)
    probe, record = watch(watched)
    loss(plain).backward()
    for a, b in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert watched.residual.observer is None
    assert not any(sublayer._forward_hooks for sublayer in watched.sublayers)
    watched.embed.weight.data *= 2
    loss(watched).backward()
    assert probe.record(0) == record


def test_a_failing_step_leaves_no_hooks():
    model = build(FullConfig())
    with pytest.raises(RuntimeError), Probe(model):
        raise RuntimeError
    assert model.residual.observer is None
    assert not any(sublayer._forward_hooks for sublayer in model.sublayers)


def test_evaluation_without_gradients():
    model = build(FullConfig())
    with torch.no_grad(), Probe(model) as probe:
        loss(model)
    record = probe.record(3)
    assert len(record["output_rms"]) == 2 * LAYERS
    assert record["gradient_norm"] == []


def test_records_are_json_and_metrics_are_flat_numbers():
    probe, record = watch(build(FullConfig()), lr=0.1)
    assert json.loads(json.dumps(record)) == record
    metrics = probe.metrics()
    assert metrics["depth/output_rms/07"] == record["output_rms"][7]
    assert metrics["depth/update_ratio/00"] == record["update_ratio"][0]
    assert metrics["depth/entropy/08"] == record["reads"][-1]["entropy"]
    assert len(metrics) == 4 * 2 * LAYERS + 2 * 2 * LAYERS
    assert all(isinstance(value, float) for value in metrics.values())


def test_the_baseline_has_magnitudes_but_no_reads():
    probe, record = watch(build(BaselineConfig()))
    assert record["reads"] == []
    assert len(record["output_rms"]) == 2 * LAYERS
    assert not any(key.startswith("depth/entropy") for key in probe.metrics())


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [BaselineConfig(), FullConfig(), BlockConfig()], ids=lambda config: config.label
)
def test_a_probe_every_100_steps_costs_less_than_2_percent(config):
    """Processor time of a step with a probe over one without, the lower quartiles of 12 pairs; the
    table is in docs/variants.md.
    """
    model = Transformer(ModelConfig(256, 64, 8, 2, residual=config), seed=1)
    tokens = torch.randint(256, (8, 129))

    def step():
        start = time.process_time()
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        return time.process_time() - start

    def probed():
        start = time.process_time()
        with Probe(model) as probe:
            step()
        probe.record(0)
        return time.process_time() - start

    step()
    plain, watched = zip(*((step(), probed()) for _ in range(12)), strict=True)
    assert (sorted(watched)[3] / sorted(plain)[3] - 1) / 100 < 0.02
