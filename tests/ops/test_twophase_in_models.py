"""Models that read depth in the two-phase schedule train as those with naive reads: checkpointed,
compiled, in parallel, sharded, under autocast.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from test_twophase import assert_same
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from attnres_lab import ops
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.ops import twophase
from attnres_lab.ops.naive import depth_attention
from attnres_lab.residual.attnres import BlockConfig, FullConfig


def lm(residual, seed=0, spread=0.3, **sizes):
    model = Transformer(
        ModelConfig(
            **{
                "vocab_size": 64,
                "dim": 32,
                "num_layers": 3,
                "num_heads": 2,
                "residual": residual,
                **sizes,
            }
        ),
        seed=seed,
    )
    with torch.no_grad():
        for parameter in model.residual.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)) * spread
            )
    return model


def loss_of(model, tokens):
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def naive_reads(monkeypatch):
    monkeypatch.setattr(twophase, "serves", lambda *_: False)
    monkeypatch.setattr(ops, "depth_attention", depth_attention)


VARIANTS = [FullConfig(), BlockConfig(block_size=4)]
SLOWLY = [VARIANTS[0], pytest.param(VARIANTS[1], marks=pytest.mark.slow)]
TOKENS = torch.randint(0, 64, (200, 2, 17), generator=torch.Generator().manual_seed(0))


OPTIONS = [
    FullConfig(heads=4, window=3),
    FullConfig(mixing="static", output_read=False),
    BlockConfig(block_size=4, mixing="sigmoid"),
]


@pytest.mark.parametrize("residual", [*VARIANTS, *OPTIONS], ids=lambda r: r.label)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_models_gradients_are_those_of_naive_reads(residual, checkpointing, monkeypatch):
    model = lm(residual, activation_checkpointing=checkpointing).double()
    ours = torch.autograd.grad(loss_of(model, TOKENS[0]), list(model.parameters()))
    naive_reads(monkeypatch)
    assert_same(ours, torch.autograd.grad(loss_of(model, TOKENS[0]), list(model.parameters())))


@pytest.mark.parametrize("residual", SLOWLY, ids=lambda r: r.label)
def test_losses_of_200_training_steps_match_those_of_naive_reads(residual, monkeypatch):
    """In fp32, from the usual start and with small plain steps: larger ones are chaotic, and the
    naive path leaves its own float64 path as fast.
    """

    def train():
        model = lm(residual, num_layers=2, spread=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        losses = []
        for tokens in TOKENS:
            loss = loss_of(model, tokens % 8)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return torch.tensor(losses)

    ours = train()
    naive_reads(monkeypatch)
    theirs = train()
    assert ours[-20:].mean() < 0.8 * ours[:5].mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("residual", SLOWLY, ids=lambda r: r.label)
def test_compiled_graphs_do_not_break(residual):
    """One graph, through the registered operator; gradients equal the eager ones."""
    model = lm(residual).double()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    a = torch.autograd.grad(loss_of(compiled, TOKENS[0]), list(model.parameters()))
    assert_same(a, torch.autograd.grad(loss_of(model, TOKENS[0]), list(model.parameters())))


GROUPS = []


@contextmanager
def process_group(folder):
    """One rank of Gloo. The group is kept until the process ends: torch joins Gloo's threads with
    the interpreter's lock held, and a thread that is just letting go of a tensor waits for that
    lock.
    """
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
    )
    GROUPS.append(torch.distributed.group.WORLD)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("residual", VARIANTS, ids=lambda r: r.label)
def test_data_parallel_training_accumulates_over_passes(residual, tmp_path):
    """DistributedDataParallel hears of every parameter, and two passes without a sync add up."""
    model = lm(residual).double()
    expected = torch.autograd.grad(
        loss_of(model, TOKENS[0]) + loss_of(model, TOKENS[1]), list(model.parameters())
    )
    with process_group(tmp_path):
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        with parallel.no_sync():
            loss_of(parallel, TOKENS[0]).backward()
        loss_of(parallel, TOKENS[1]).backward()
    assert_same([p.grad for p in model.parameters()], expected)


@pytest.mark.parametrize("residual", SLOWLY, ids=lambda r: r.label)
def test_fully_sharded_training_has_the_same_gradients(residual, tmp_path):
    model = lm(residual).double()
    expected = torch.autograd.grad(loss_of(model, TOKENS[0]), list(model.parameters()))
    with process_group(tmp_path):
        mesh = init_device_mesh("cpu", (1,))
        for module in (*model.sublayers, model):
            fully_shard(module, mesh=mesh)
        loss_of(model, TOKENS[0]).backward()
        assert_same([p.grad.full_tensor() for p in model.parameters()], expected)


@pytest.mark.parametrize("residual", VARIANTS, ids=lambda r: r.label)
def test_autocast_reads_in_full_precision(residual):
    """The schedule steps aside under autocast; the loss stays near the fp32 one and every gradient
    is finite.
    """
    model = lm(residual)
    plain = loss_of(model, TOKENS[0]).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, TOKENS[0])
    loss.backward()
    assert abs(loss.item() - plain) < 0.05
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("residual", VARIANTS, ids=lambda r: r.label)
def test_an_observer_hears_the_naive_weights_and_names(residual, monkeypatch):
    model, heard = lm(residual).double(), []
    model.residual.observer = lambda index, names, weights: heard.append((index, names, weights))
    model(TOKENS[0])
    ours, heard = heard, []
    model.residual.observer = lambda index, names, weights: heard.append((index, names, weights))
    naive_reads(monkeypatch)
    model(TOKENS[0])
    assert [x[:2] for x in ours] == [x[:2] for x in heard]
    assert_same([x[2] for x in ours], [x[2] for x in heard])
