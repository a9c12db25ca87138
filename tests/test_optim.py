"""Parameter groups and schedules."""

import copy

import pytest
import torch

from attnres_lab.config import OptimConfig
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.residual.attnres import FullConfig
from attnres_lab.training.optim import Together, lr_factor, make_optimizer, parameter_groups


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_optimised_once_and_queries_get_no_decay_and_no_muon(name: str) -> None:
    model = Transformer(
        ModelConfig(dim=16, num_layers=2, num_heads=2, tie_embeddings=True, residual=FullConfig())
    )
    whole = make_optimizer(model, OptimConfig(name=name, lr=1e-2, residual_lr_mult=3.0))
    parts = whole.parts if isinstance(whole, Together) else (whole,)
    seen = [p for g in whole.param_groups for p in g["params"]]
    assert len(seen) == len({id(p) for p in seen}) == len(list(model.parameters()))
    residual = {id(p) for p in model.residual.parameters()}
    for part in parts:
        for group in part.param_groups:
            if residual & {id(p) for p in group["params"]}:
                assert {id(p) for p in group["params"]} == residual
                assert group["weight_decay"] == 0
                assert isinstance(part, torch.optim.AdamW)
    assert {g["lr"] for g in whole.param_groups} == {0.01, 0.03}


def test_muon_and_adamw_as_one_step_and_resume_as_the_two_do() -> None:
    config = ModelConfig(dim=16, num_layers=2, num_heads=2, residual=FullConfig())
    c = OptimConfig(name="muon", lr=1e-2)
    tokens = torch.arange(24).view(2, 12)

    def train(model: Transformer, *optimizers: torch.optim.Optimizer) -> None:
        model(tokens).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    one, two = Transformer(config), Transformer(config)
    together, apart = make_optimizer(one, c), make_optimizer(two, c)
    assert isinstance(together, Together)
    assert isinstance(apart, Together)
    for step in range(4):
        if step == 2:  # a new optimiser that takes up the old one's state
            saved = copy.deepcopy(together.state_dict())
            together = make_optimizer(one, c)
            together.load_state_dict(saved)
        train(one, together)
        train(two, *apart.parts)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_matrices_are_the_trunks_projections() -> None:
    model = Transformer(ModelConfig(dim=16, num_layers=2, num_heads=2, residual=FullConfig()))
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 2)[-2] for p in parameter_groups(model)["matrix"]} == {
        "q",
        "kv",
        "out",
        "gate_up",
    }


def test_cosine_and_wsd_follow_their_definitions() -> None:
    cosine = OptimConfig(warmup=0.1, final_lr=0.2)
    assert lr_factor(cosine, 0.05) == pytest.approx(0.5)
    assert lr_factor(cosine, 0.1) == pytest.approx(1.0)
    assert lr_factor(cosine, 0.55) == pytest.approx(0.6)  # half way: the mean of 1 and final_lr
    assert lr_factor(cosine, 1.0) == pytest.approx(0.2)
    wsd = OptimConfig(schedule="wsd", warmup=0.1, decay=0.2, final_lr=0.0)
    assert [lr_factor(wsd, p) for p in (0.5, 0.79, 0.9, 1.0)] == pytest.approx([1, 1, 0.5, 0])
