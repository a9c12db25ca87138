"""Parameter groups and schedules."""

import copy
from pathlib import Path

import pytest
import torch

from attnres_lab.config import OptimConfig, content_hash, load
from attnres_lab.errors import UserError
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.residual.attnres import FullConfig
from attnres_lab.training.optim import (
    Together,
    clip_gradients,
    lr_factor,
    make_optimizer,
    parameter_groups,
)

TINY = Path(__file__).parent.parent / "experiments" / "tiny.yaml"


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


def small(**options: object) -> Transformer:
    config = ModelConfig(dim=16, num_layers=2, num_heads=2, residual=FullConfig(**options))
    return Transformer(config)


def backward(model: Transformer) -> None:
    model(torch.arange(24).view(2, 12)).square().mean().backward()


@pytest.mark.parametrize("trunk", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decay_and_optimiser_of_queries_are_theirs_alone(trunk: str, name: str) -> None:
    model = small()
    c = OptimConfig(
        name=trunk, lr=1e-2, query_weight_decay=0.3, query_optimizer=name, residual_lr_mult=2.0
    )
    whole = make_optimizer(model, c)
    parts = whole.parts if isinstance(whole, Together) else (whole,)
    seen = [p for g in whole.param_groups for p in g["params"]]
    assert len(seen) == len({id(p) for p in seen}) == len(list(model.parameters()))
    kinds = {
        id(p): (type(part).__name__, group["weight_decay"], group["lr"])
        for part in parts
        for group in part.param_groups
        for p in group["params"]
    }
    assert whole.param_groups[0]["lr"] == 0.01, "optim/lr of a row is the trunk's"
    queries, gains = model.residual.pseudo_query, model.residual.key_gain
    assert kinds[id(queries)] == ("AdamW" if name == "adamw" else "Muon", 0.3, 0.02)
    assert kinds[id(gains)] == ("AdamW", 0.0, 0.02)
    matrix = model.sublayers[0].q.weight
    assert kinds[id(matrix)] == ("AdamW" if trunk == "adamw" else "Muon", 0.1, 0.01)


def test_muon_moves_each_query_by_itself() -> None:
    """As a matrix of one row: every query moves as far, along its own gradient, however small that
    is beside the others' (momentum and Nesterov leave the direction of a first step alone).
    """
    model = small()
    optimizer = make_optimizer(model, OptimConfig(lr=1e-2, query_optimizer="muon"))
    backward(model)
    gradient = model.residual.pseudo_query.grad.clone()
    gradient[0] *= 1e-3
    model.residual.pseudo_query.grad = gradient.clone()
    optimizer.step()
    moved = -model.residual.pseudo_query.detach()
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(moved, gradient), torch.ones(4), rtol=0, atol=1e-3
    )
    assert float(moved.norm(dim=-1).max() / moved.norm(dim=-1).min()) < 2


@pytest.mark.parametrize("trunk", ["adamw", "muon"])
def test_queries_without_an_fp32_master_lose_small_updates(trunk: str) -> None:
    """A step of 1e-4 on a query at 1 is below half a bf16 step; with a master it adds up."""
    kept = {}
    for master in (True, False):
        model = small()
        torch.nn.init.ones_(model.residual.pseudo_query)
        before = model.residual.pseudo_query.detach().clone()
        optimizer = make_optimizer(model, OptimConfig(name=trunk, lr=1e-4, query_master=master))
        for _ in range(3):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
        queries = model.residual.pseudo_query.detach()
        kept[master] = torch.equal(queries, before)
        assert torch.equal(queries, queries.bfloat16().float()) is not master
        assert not torch.equal(model.sublayers[0].q.weight, model.sublayers[0].q.weight.bfloat16())
    assert kept == {True: False, False: True}


def test_the_residuals_gradients_may_be_clipped_by_themselves() -> None:
    def norms(model: Transformer) -> tuple[float, float]:
        residual = {id(p) for p in model.residual.parameters()}
        trunk, own = (
            torch.nn.utils.get_total_norm(
                [p.grad for p in model.parameters() if (id(p) in residual) is mine]
            )
            for mine in (False, True)
        )
        return float(trunk), float(own)

    model = small()
    backward(model)
    trunk, own = norms(model)
    whole = (trunk**2 + own**2) ** 0.5
    limits = trunk / 4, own / 3
    assert float(clip_gradients(model, *limits)) == pytest.approx(whole, rel=1e-5)
    assert norms(model) == pytest.approx(limits, rel=1e-4)

    model.zero_grad()
    backward(model)
    assert float(clip_gradients(model, limits[0], 0.0)) == pytest.approx(whole, rel=1e-5)
    assert norms(model) == pytest.approx((limits[0], own), rel=1e-4)

    model.zero_grad()
    backward(model)
    assert float(clip_gradients(model, whole / 2, None)) == pytest.approx(whole, rel=1e-5)
    assert norms(model) == pytest.approx((trunk / 2, own / 2), rel=1e-4)


@pytest.mark.parametrize(
    ("variant", "setting"),
    [
        ("baseline", {"query_weight_decay": 0.1}),
        ("hyper", {"query_optimizer": "muon"}),
        ("mhc", {"query_master": False}),
        ("baseline", {"residual_clip": -1.0}),
    ],
)
def test_settings_of_queries_where_there_are_none(variant: str, setting: dict[str, object]) -> None:
    (key, value) = next(iter(setting.items()))
    with pytest.raises(UserError, match=rf"optim\.{key}: .*; leave it out"):
        load(TINY, {"model.residual.name": variant, f"optim.{key}": value})


def test_new_settings_leave_the_identity_of_older_runs() -> None:
    """At their defaults; the number is from before there were any."""
    base = load(TINY, {"model.residual.name": "full"})
    assert content_hash(base) == "7b34c7d70785"
    for key, value in {
        "query_weight_decay": 0.1,
        "query_optimizer": "muon",
        "query_master": False,
        "residual_clip": 1.0,
    }.items():
        changed = load(TINY, {"model.residual.name": "full", f"optim.{key}": value})
        assert content_hash(changed) != content_hash(base)
