"""Parameter groups and schedules."""

import pytest
import torch

from attnres_lab.config import OptimConfig
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.residual.attnres import FullConfig
from attnres_lab.training.optim import lr_factor, make_optimizers, parameter_groups, set_lr


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_optimised_once_and_queries_get_no_decay_and_no_muon(name: str) -> None:
    model = Transformer(
        ModelConfig(dim=16, num_layers=2, num_heads=2, tie_embeddings=True, residual=FullConfig())
    )
    optimizers = make_optimizers(model, OptimConfig(name=name, lr=1e-2, residual_lr_mult=3.0))
    seen = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    assert len(seen) == len({id(p) for p in seen}) == len(list(model.parameters()))
    residual = {id(p) for p in model.residual.parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if residual & {id(p) for p in group["params"]}:
                assert {id(p) for p in group["params"]} == residual
                assert group["weight_decay"] == 0
                assert isinstance(optimizer, torch.optim.AdamW)
    set_lr(optimizers, 0.5)
    assert {g["lr"] for o in optimizers for g in o.param_groups} == {0.005, 0.015}


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
