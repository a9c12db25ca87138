"""Adapters beside a frozen trunk: what is trained, what comes back, and what peft itself says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import clean, kimi, relative, save, tiny, tokens
from test_continued import AFTER, BLOCK, continued

from attnres_lab.config import content_hash, load
from attnres_lab.errors import UserError
from attnres_lab.model import Transformer
from attnres_lab.pretrained import convert, export
from attnres_lab.runs.folder import RunFolder
from attnres_lab.training.checkpoint import load_checkpoint, load_model
from attnres_lab.training.lora import adapt, merge
from attnres_lab.training.module import LitTransformer
from attnres_lab.training.optim import parameter_groups
from attnres_lab.training.run import run

LORA = {"optim.lora": {"rank": 4, "alpha": 8}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted Llama."""
    home = tmp_path_factory.mktemp("base")
    convert(str(save(tiny("llama"), home / "source")), home / "run")
    return home / "run"


def test_a_converted_model_is_not_trained_in_its_own_folder(base: Path) -> None:
    """It has no state of training to go on from, and stays what it is."""
    with pytest.raises(UserError, match=r"not trained in place; train in another folder, .*init_f"):
        run(load(base / "config.yaml"), base)
    assert RunFolder(base).status().message == "converted"


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft")


def adapted(model: Transformer, seed: int = 0, **options: Any) -> Transformer:
    """With adapters whose B is not zero."""
    config = load_lora(options)
    adapt(model, config, seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(0.03 * torch.randn(value.shape, generator=generator))
    return model


def load_lora(options: dict[str, Any]) -> Any:
    from attnres_lab.config import LoraConfig

    return LoraConfig(**{"rank": 4, "alpha": 8.0} | options)


@pytest.mark.usefixtures("peft")
@pytest.mark.parametrize("kind", ["llama", "kimi"])
def test_adapters_start_as_nothing(tmp_path: Path, kind: str) -> None:
    """On attention, KDA, MLA, MoE and the dense MLP: the same bits, of one seed the same draws of
    A, and the stream of random numbers goes on as if there were none.
    """
    theirs = kimi() if kind == "kimi" else tiny(kind)
    convert(str(save(theirs, tmp_path / "source")), tmp_path / "run")
    (plain, config), (model, _), (again, _) = (load_model(tmp_path / "run") for _ in range(3))
    torch.manual_seed(3)
    adapt(model, load_lora({}), config.seed)
    drawn = torch.rand(3)
    adapt(again, load_lora({}), config.seed)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), drawn)
    adapters = {n: p for n, p in model.named_parameters() if "lora_" in n}
    assert {n.split(".")[2] for n in adapters} == set(config.model.linear_maps)
    assert ("router" in config.model.linear_maps) is False
    for name, value in again.named_parameters():
        assert torch.equal(dict(model.named_parameters())[name], value)
    with torch.no_grad():
        assert torch.equal(model(tokens()), plain(tokens()))
        assert relative(adapted(plain)(tokens()), model(tokens())) > 1e-3


@pytest.mark.usefixtures("peft")
@pytest.mark.parametrize("kind", ["llama", "qwen2", "kimi"])
def test_merged_weights_are_the_adapters(tmp_path: Path, kind: str) -> None:
    """Logits of the forward pass with adapters to 1e-6, in fp64 to 1e-13 (Kimi Linear's, which
    chooses experts and has fp32 inside, in fp64 alone); the weights that peft's own merge makes.
    """
    from peft.tuners.lora import LoraLayer

    theirs = kimi() if kind == "kimi" else tiny(kind)
    convert(str(save(theirs, tmp_path / "source")), tmp_path / "run")
    model, config = load_model(tmp_path / "run")
    adapted(model)
    for dtype, most in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        plain = Transformer(config.model).eval().to(dtype)
        merged = merge(model.to(dtype).state_dict(), load_lora({}))
        plain.load_state_dict(merged)
        with torch.no_grad():
            found, expected = plain(tokens()), model(tokens())
        assert relative(found, expected) < most or (kind == "kimi" and dtype == torch.float32)
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]:
        layer.merge()
        weight = layer.get_base_layer().weight
        assert relative(merged[f"{name}.weight"], weight) < 1e-15, name


@pytest.mark.usefixtures("peft")
def test_separate_inputs_of_keys_and_values_go_through_the_adapter() -> None:
    """A residual connection that gives keys and values inputs of their own sees it too."""
    from attnres_lab.model import ModelConfig
    from attnres_lab.residual import REGISTRY

    config = ModelConfig(64, 32, 2, 4, residual=REGISTRY["mudd"].Config(ways="qkvr"))
    model, inputs = Transformer(config).eval(), tokens() % 64
    with torch.no_grad():
        before = model(inputs)
        adapted(model, targets=("kv",))
        plain = Transformer(config).eval()
        plain.load_state_dict(merge(model.state_dict(), load_lora({})))
        assert relative(plain(inputs), model(inputs)) < 1e-6
        assert relative(before, model(inputs)) > 1e-3


@pytest.mark.usefixtures("peft")
def test_adapters_and_queries_learn_and_nothing_else(tmp_path: Path, base: Path) -> None:
    """Twenty steps from a converted model under Block, the residual's at a rate and clip of their
    own; the trunk's weights, embedding and norms keep their bits.
    """
    changes = BLOCK | LORA | {"budget": "20 steps", "train.checkpoint_every": 0}
    changes |= {"optim.residual_lr_mult": 3.0, "optim.residual_clip": 1.0}
    config = continued(tmp_path, base, **changes)
    assert run(config, tmp_path / "run").status.state == "finished"
    state = load_checkpoint(RunFolder(tmp_path / "run").checkpoint)["state_dict"]
    known = load_model(base)[0].state_dict()
    kinds = dict.fromkeys(("adapter", "residual", "trunk"), 0)
    for name, value in state.items():
        plain = name.removeprefix("model.").replace(".base_layer", "")
        if plain in known:
            kinds["trunk"] += 1
            assert torch.equal(value, known[plain]), name
        elif "lora_B" in name or plain == "residual.pseudo_query":
            kinds["adapter" if "lora" in name else "residual"] += 1
            assert value.abs().max() > 1e-4, name
    assert kinds == {"adapter": 4 * 5, "residual": 1, "trunk": len(known)}
    optimizer = LitTransformer(config).make_optimizer()
    trained = {p for g in optimizer.param_groups for p in g["params"] if p.requires_grad}
    assert len(trained) == 2 * 4 * 5 + 2


@pytest.mark.usefixtures("peft")
def test_a_frozen_router_keeps_its_balance(tmp_path: Path) -> None:
    """What the experts' loads would move is part of the trunk."""
    convert(str(save(kimi(), tmp_path / "source")), tmp_path / "run")
    config = continued(tmp_path, tmp_path / "run", **LORA, **{"budget": "3 steps"})
    run(config, tmp_path / "lora")
    (before, _), (after, _) = load_model(tmp_path / "run"), load_model(tmp_path / "lora")
    for name, value in before.named_buffers():
        assert torch.equal(value, after.get_buffer(name)), name
    assert any(name.endswith("balance") for name, _ in before.named_buffers())


@pytest.mark.slow
@pytest.mark.usefixtures("peft")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_adapters_like_one(tmp_path: Path, base: Path, strategy: str) -> None:
    """After four steps in fp32 what learns to 2e-5 (relative: AdamW makes much of the last digits
    of small gradients), and the trunk bit for bit.
    """
    changes = BLOCK | LORA | {"budget": "4 steps", "optim.lr": 1e-3}
    run(continued(tmp_path, base, **changes), tmp_path / "one")
    changes |= {"train.devices": 2, "train.device": "cpu", "train.strategy": strategy}
    run(continued(tmp_path, base, **changes), tmp_path / "two")
    one, two = (
        load_checkpoint(RunFolder(tmp_path / name).checkpoint)["state_dict"]
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        learns = "lora_" in name or "residual" in name
        assert relative(two[name], value) < 2e-5 if learns else torch.equal(two[name], value), name


@pytest.mark.usefixtures("peft")
def test_what_was_trained_with_adapters_is_read_without_peft(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported, it has the logits of the model that was trained, where neither this package nor
    peft is; trained further, it starts from the merged weights.
    """
    config = continued(tmp_path, base, **BLOCK, **LORA, **{"optim.lr": 1e-2})
    run(config, tmp_path / "run")
    module = LitTransformer(config)
    checkpoint = load_checkpoint(RunFolder(tmp_path / "run").checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    module.eval()
    with torch.no_grad():
        expected, start = module.model(tokens()), load_model(base)[0](tokens())
    assert relative(start, expected) > 1e-3
    monkeypatch.setitem(sys.modules, "peft", None)
    export(tmp_path / "run", tmp_path / "exported")
    torch.save(tokens(), tmp_path / "tokens.pt")
    clean(tmp_path, AFTER.replace("import sys", "import sys; sys.modules['peft'] = None"))
    assert relative(torch.load(tmp_path / "logits.pt"), expected) < 2e-6
    changes: dict[str, Any] = {"budget": "1 steps", "optim.lr": 1e-9}
    further = continued(tmp_path, base, **BLOCK, **changes, init_from=str(tmp_path / "run"))
    run(further, tmp_path / "further")
    with torch.no_grad():
        assert relative(load_model(tmp_path / "further")[0](tokens()), expected) < 2e-6


@pytest.mark.usefixtures("peft")
def test_adapters_are_trained_as_matrices_of_the_trunk(base: Path) -> None:
    model, _ = load_model(base)
    adapt(model, load_lora({"targets": ("q", "out")}), 0)
    groups = parameter_groups(model)
    trained = {key: [p for p in group if p.requires_grad] for key, group in groups.items()}
    assert {key: len(group) for key, group in trained.items()} == {
        "matrix": 2 * (4 + 8),  # q of four layers, out of eight sublayers
        "undecayed": 0,
        "residual": 0,
    }


def test_a_run_without_adapters_keeps_its_identity(base: Path) -> None:
    config = load(base / "config.yaml")
    named = {"optim.lora": {"targets": ["all"], "alpha": 16}}
    assert content_hash(load(base / "config.yaml", named)) == content_hash(config)
    seen = {
        content_hash(load(base / "config.yaml", {"optim.lora": {"rank": 4} | more}))
        for more in ({}, {"alpha": 8}, {"targets": ["q"]})
    }
    assert len(seen | {content_hash(config)}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.lora.rank": 0}, "rank: 0 is not positive; leave it out for no adapters"),
        ({"optim.lora.alpha": 4}, "alpha: without optim.lora.rank there are no adapters; give"),
        ({"optim.lora": {"rank": 4, "alpha": 0}}, "alpha: 0.0 is not positive"),
        (
            {"optim.lora": {"rank": 4, "targets": ["gate_uq"]}},
            "targets: no sublayer has a linear map 'gate_uq', did you mean 'gate_up'?",
        ),
        (
            {"optim.lora": {"rank": 4, "targets": ["zz"]}},
            "'zz'; valid: all, gate_up, kv, out, q",
        ),
        ({"optim.lora": {"rank": 4, "targets": []}}, "targets: none is named; take some of q"),
        ({"optim.lora": {"rank": 4, "r": 4}}, "optim.lora.r: unknown key"),
        (
            {"optim.lora.rank": 4, "optim.freeze_trunk": True, "model.residual": "full"},
            "optim.freeze_trunk: it would freeze the adapters",
        ),
        (
            {"optim.lora.rank": 4, "train.strategy": "pipeline", "train.devices": 2},
            "rank: a pipeline has no adapters; take another train.strategy",
        ),
    ],
)
def test_bad_settings_get_one_line(base: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(base / "config.yaml", changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_peft_the_remedy_is_named(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"peft is not installed: pip install 'attnres-lab\[lora\]"):
        run(continued(tmp_path, base, **LORA), tmp_path / "run")
