"""Mixture of experts: its definition, its balance, its counts, and its optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from definitions import moe as definition
from torch import Tensor, distributed, multiprocessing
from trunks import build, tokens

from attnres_lab.config import OptimConfig
from attnres_lab.mixers.moe import MoE, MoEConfig
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.model.flops import num_params
from attnres_lab.training.optim import make_optimizer

D, T = 12, 7


def built(**options: Any) -> MoE:
    """In float64, with weights and balance drawn."""
    layer = MoE(MoEConfig(**options), ModelConfig(dim=D, num_heads=2)).double()
    generator = torch.Generator().manual_seed(0)
    layer.init_weights(generator, 1)
    layer.balance += torch.rand(layer.balance.shape, generator=generator, dtype=torch.float64)
    return layer


def x_of(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, D, generator=generator, dtype=torch.float64)


def check_definition(layer: MoE) -> None:
    x = x_of(2, T)
    c, weights = layer.c, dict(layer.state_dict())
    for row, out in zip(layer.norm(x), layer(x), strict=True):
        torch.testing.assert_close(
            out, definition(row, weights, c.top_k, c.scale), rtol=1e-10, atol=1e-10
        )


OPTIONS: list[dict[str, Any]] = [
    {},
    {"experts": 5, "top_k": 3, "shared": 2, "expert_dim": 4, "scale": 1.0},
    {"experts": 3, "top_k": 3, "shared": 0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "wide", "alone"])
def test_the_definition(options: dict[str, Any]) -> None:
    check_definition(built(**options))


def test_a_bias_in_the_weights_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def biased(self: MoE, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        score = self.router(x_ND).sigmoid() + self.balance
        top = score.topk(self.c.top_k)
        return top.indices, self.c.scale * top.values / top.values.sum(1, keepdim=True)

    monkeypatch.setattr(MoE, "route", biased)
    with pytest.raises(AssertionError):
        check_definition(built())


def test_a_dropped_shared_expert_is_caught() -> None:
    layer, x = built(), x_of(1, T)
    expected = definition(layer.norm(x)[0], dict(layer.state_dict()), 2, layer.c.scale)
    torch.testing.assert_close(layer(x)[0], expected)
    layer.shared_gate_up = None
    with pytest.raises(AssertionError):
        torch.testing.assert_close(layer(x)[0], expected)


def test_skewed_loads_are_flattened_in_200_steps() -> None:
    """At rate 0.01, from all tokens on the same two of eight experts: largest load over the mean
    below 2, and no dead expert.
    """
    layer = MoE(MoEConfig(experts=8, top_k=2, balance_rate=0.01), ModelConfig(dim=D, num_heads=2))
    layer.init_weights(torch.Generator().manual_seed(0), 1)
    layer.router.weight.data *= 0.3
    layer.router.weight.data[:2, 0] += 1.0
    history = []
    for step in range(200):
        x = x_of(1, 256, seed=step).float()
        x[..., 0] = 4.0
        layer(x).sum().backward()
        layer.after_step()
        history.append(layer.metrics())
    assert history[0]["moe/load"] == pytest.approx(4)
    assert history[0]["moe/dead"] == 6
    assert all(row["moe/load"] < 2 and row["moe/dead"] == 0 for row in history[-20:])


def test_loads_are_counted_once_where_the_forward_pass_is_recomputed() -> None:
    loads = []
    for saved in (False, True):
        model = build("moe", activation_checkpointing=saved).train()
        model(tokens()).sum().backward()
        (layer, *_) = [m for m in model.mixers() if isinstance(m, MoE)]
        assert layer.load is not None
        loads.append(layer.load)
    assert torch.equal(*loads)
    assert loads[0].sum() == 2 * tokens().numel()  # two experts a token


def test_what_is_not_trained_on_is_not_counted() -> None:
    layer = built()
    with torch.no_grad():
        layer(x_of(1, T))
    layer.after_step()
    assert layer.load is None
    assert layer.metrics() == {}


def _rank(rank: int, file: str, out: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    layer = built()
    layer(x_of(2, T)[rank : rank + 1]).sum().backward()
    layer.after_step()
    torch.save((layer.balance, layer.last_load), f"{out}{rank}")
    distributed.destroy_process_group()


def test_data_parallel_ranks_add_up_their_loads(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, (str(tmp_path / "store"), str(tmp_path / "out")), nprocs=2)
    layer = built()
    layer(x_of(2, T)).sum().backward()
    layer.after_step()
    for rank in range(2):
        balance, load = torch.load(tmp_path / f"out{rank}", weights_only=True)
        assert torch.equal(balance, layer.balance)
        assert torch.equal(load, layer.last_load)


def test_active_parameters_are_those_a_token_uses() -> None:
    """As many as in the same model with no more experts than it uses."""

    def config(experts: int) -> ModelConfig:
        return ModelConfig(dim=D, num_heads=2, mlp=MoEConfig(experts=experts, top_k=2))

    many, few = num_params(config(8)), num_params(config(2))
    routers = 7 * D * (8 - 2)  # of the seven layers that are not dense
    assert many.active == few.non_embedding + routers
    assert few.active == few.non_embedding
    assert num_params(ModelConfig()).active == num_params(ModelConfig()).non_embedding


def test_muon_treats_every_expert_as_a_matrix_of_its_own() -> None:
    config = ModelConfig(dim=D, num_layers=2, num_heads=2, mlp=MoEConfig(experts=3))
    model = Transformer(config)
    model(tokens()).sum().backward()
    stack = model.sublayers[3].gate_up
    single = [torch.nn.Parameter(m.detach().clone()) for m in stack]
    for parameter, gradient in zip(single, stack.grad, strict=True):
        parameter.grad = gradient.clone()
    muon = make_optimizer(model, OptimConfig(name="muon", lr=0.1, weight_decay=0.1))
    alone = torch.optim.Muon(single, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(2):
        muon.step()
        alone.step()
    torch.testing.assert_close(stack, torch.stack(single), rtol=0, atol=0)
