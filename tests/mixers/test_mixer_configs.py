"""The sections ``model.mixers`` and ``model.mlp``: typed, named in errors, no news to old runs."""

from pathlib import Path

import pytest

from attnres_lab.config import RunConfig, content_hash, load, parse_overrides, to_yaml
from attnres_lab.errors import UserError
from attnres_lab.mixers import AttentionConfig, MLAConfig, MoEConfig, SwiGLUConfig

TINY = Path(__file__).parents[2] / "experiments" / "tiny.yaml"


def test_a_dense_run_has_the_identity_it_had_before_there_were_mixers() -> None:
    assert content_hash(RunConfig()) == "d441f553e228"
    assert content_hash(load(TINY, {"model.mixers.attention.window": 8})) != content_hash(
        load(TINY)
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "model.mixers.pattern=[atention]",
            "model.mixers.pattern: unknown mixer 'atention', did you mean 'attention'?",
        ),
        (
            "model.mixers.pattern=[attention, attention, attention]",
            "model.mixers.pattern: 3 entries do not divide model.num_layers = 8; repeat",
        ),
        ("model.mixers.pattern=[]", "model.mixers.pattern: 0 entries do not divide"),
        ("model.mixers.attention.windw=3", "unknown key, did you mean 'window'?"),
        ("model.mixers.attention.window=0", "model.mixers.attention.window: 0 is not positive"),
        (
            "model.mixers={pattern: [local, attention], local: {window: 0}}",
            "model.mixers.local.window: 0 is not positive",
        ),
        (
            "model.mixers={pattern: [local, attention], local: {causal: false}}",
            "model.mixers.local.causal: false lets a token see the next one",
        ),
        (
            "model.mixers={pattern: [local], local: {rope: {fraction: 2}}}",
            "model.mixers.local.rope.fraction: 2.0 is not between 0 and 1",
        ),
        ("model.mixers.local.window=4", "model.mixers.local: options of a mixer that"),
        ("model.mixers.attention.head_dim=7", "RoPE needs an even width"),
        ("model.mixers.attention.rope.fraction=1.5", "rope.fraction: 1.5 is not between 0 and 1"),
        (
            "model.mixers.attention.rope={scaling: yarn, slow: 40}",
            "model.mixers.attention.rope.slow: 40.0 is not between 0 and fast = 32.0",
        ),
        ("model.mlp.name=mo", "model.mlp.name: unknown channel mixer 'mo', did you mean 'moe'?"),
        (
            "model.mlp={name: moe, experts: 4, top_k: 5}",
            "model.mlp.top_k: 5 is more than model.mlp.experts = 4",
        ),
        ("model.mlp={name: moe, shared: -1}", "model.mlp.shared: -1 is negative"),
        (
            "model.mlp={name: moe, top_k: 8, shared: 90}",
            "model.mlp.expert_dim: 0 is not positive; give a width",
        ),
        ("model.mlp={name: swiglu, top_k: 8}", "model.mlp.top_k: unknown key"),
        (
            "model.mixers={pattern: [mla], mla: {latent_dim: 0}}",
            "model.mixers.mla.latent_dim: 0 is not positive",
        ),
        ("model.mixers.mla.latent_dim=9", "model.mixers.mla: options of a mixer that"),
    ],
)
def test_bad_input_gets_one_line_with_key_and_remedy(word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(TINY, parse_overrides([word]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_heads_that_do_not_divide_are_refused_unless_they_have_a_width() -> None:
    words = ["model.mixers.pattern=[mla]", "model.num_heads=5"]
    with pytest.raises(UserError, match=r"num_heads: 5 heads do not divide model.dim = 32"):
        load(TINY, parse_overrides(words))
    load(TINY, parse_overrides([*words, "model.mixers.mla.head_dim=8"]))


def test_another_channel_mixer_drops_the_options_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "budget: 1 steps\nmodel: {dim: 32, mlp: {name: moe, experts: 4}}"
    )
    assert load(tmp_path / "x.yaml", {"model.mlp.name": "swiglu"}).model.mlp == SwiGLUConfig()


def test_the_resolved_form_loads_to_the_same(tmp_path: Path) -> None:
    words = ["model.mixers.attention.rope={scaling: llama3, factor: 4}"]
    words += ["model.mixers.pattern=[attention, mla]", "model.mlp={name: moe, experts: 6}"]
    config = load(TINY, parse_overrides(words))
    assert [type(c) for c in config.model.sublayers[:4]] == [
        AttentionConfig,
        SwiGLUConfig,
        MLAConfig,
        MoEConfig,
    ]
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "resolved.yaml") == config
