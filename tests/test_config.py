"""Run YAMLs: strict, typed, with messages that name the place and the remedy."""

import math
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from attnres_lab.config import Budget, content_hash, flatten, load, parse_overrides, to_yaml
from attnres_lab.config.budget import UNITS
from attnres_lab.config.optim import OptimConfig
from attnres_lab.config.tree import RunConfig, TrainConfig
from attnres_lab.errors import UserError

ROOT = Path(__file__).parent.parent
TINY = ROOT / "experiments" / "tiny.yaml"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").rglob("*.yaml")), ids=lambda p: p.stem
)
def test_every_experiment_loads_and_its_resolved_form_loads_to_the_same(
    path: Path, tmp_path: Path
) -> None:
    config = load(path)
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.lrr=1", "override: optim.lrr: unknown key, did you mean 'lr'?"),
        ("optmi.lr=1", "override: optmi: unknown key, did you mean 'optim'?"),
        (
            "optim.lr=fast",
            "override: optim.lr: should be a valid number, unable to parse string as a number",
        ),
        ("optim.lr=-1", "override: optim.lr: -1.0 is not positive"),
        (
            "train.batch_size=true",
            "override: train.batch_size: True is true or false, another type is expected",
        ),
        (
            "optim.name=sgd",
            "override: optim.name: should be 'adamw' or 'muon', got 'sgd'",
        ),
        ("optim.betas=[0.9]", "override: optim.betas:"),
        ("model.num_heads=5", "override: model.num_heads: 5 heads do not divide model.dim = 32"),
        (
            "model.num_kv_heads=3",
            "override: model.num_kv_heads: 3 does not divide model.num_heads = 2; take a divisor",
        ),
        (
            "model.residual.name=blok",
            "override: model.residual.name: unknown variant 'blok', did you mean 'block'?",
        ),
        (
            "model.residual={name: block, num_blocks: 99}",
            "model.residual.num_blocks: 99 is not within 1 and the 16 sublayers",
        ),
        ("model.residual={name: block, num_blocks: 2, block_size: 3}", "not both"),
        ("model.residual={name: full, num_blocks: 2}", "model.residual.num_blocks: unknown key"),
        (
            "budget={steps: 4, flops: 5}",
            "override: budget: write a value and its unit: budget: 5 flops",
        ),
        ("budget.steps=5", "override: budget: write a value and its unit: budget: 5 steps"),
        ("budget={}", "budget: a value and its unit are expected, for example 150 steps"),
        ("budget=5", "budget: a value and its unit are expected, for example 150 steps"),
        ("budget=-3 tokens", "budget: -3 is not positive and finite"),
        ("budget=3 epochs", "budget: unknown unit 'epochs'; one of tokens, tokens_per_param"),
        ("budget=1.5 steps", "budget: 1.5 is no whole number of steps"),
        ("optim=3", "override: optim: a mapping is expected, got 3"),
        ("data.tokenizer=${oc.env:HOME}", "interpolation is not supported"),
        ("name=../up", "may hold letters, digits"),
        (
            "train.micro_batch_size=3",
            "8 is not a multiple of micro_batch_size 3 x 1 devices; change either",
        ),
        ("train.devices=3", "8 is not a multiple of 3 devices; change either"),
        ("train.micro_batch_size=0", "train.micro_batch_size: 0 is not positive; leave it out"),
        ("train.checkpoint_every=-1", "train.checkpoint_every: -1 is negative; 0: at the end only"),
        ("train.probe_every=-1", "train.probe_every: -1 is negative; 0: at the end only"),
        ("model.mlp_dim=0", "model.mlp_dim: 0 is not positive; leave it out for 8/3 of model.dim"),
        ("model.rope_theta=0", "model.rope_theta: 0.0 is not positive"),
        (
            "optim={schedule: wsd, warmup: 0.5, decay: 0.6}",
            "optim.decay: 0.6 and optim.warmup = 0.5 are more than the whole of the steps; lower",
        ),
        ("data.source.subset=a", "data.source.subset: is read by data.source.name: huggingface"),
        ("data.source.split=test", "data.source.split: is read by data.source.name: huggingface"),
        ("data.source.revision=a", "data.source.revision: is read by data.source.name: hugging"),
        ("model.mlp={name: moe, top_k: 0}", "model.mlp.top_k: 0 is not positive; give 1 or more"),
        ("model.mlp={name: moe, shared: -1}", "model.mlp.shared: -1 is negative; give 0 or more"),
        (
            "model.mlp={name: moe, experts: 1}",
            "model.mlp.top_k: 2 is more than model.mlp.experts = 1; change either",
        ),
        (
            "model.mixers.attention.head_dim=-2",
            "model.mixers.attention.head_dim: -2 is not positive; leave it out",
        ),
        (
            "model.residual={name: full, heads: 5}",
            "model.residual.heads: 5 heads do not divide model.dim = 32; take a divisor, or kv",
        ),
        ("model.residual={name: full, temperature: 0}", "is not positive; it divides the logits"),
        ("model.residual={name: full, query_std: -1}", "is negative; 0: queries start at zero"),
        ("lr", "overrides are written key=value"),
        ("optim.lr=.nan", "optim.lr: should be a finite number, got nan"),
        ("optim.lr=inf", "optim.lr: should be a finite number, got 'inf'"),
        ("budget=inf tokens", "budget: inf is not positive and finite"),
        ("optim.clip=-1", "optim.clip: -1.0 is negative"),
        ("optim.betas=[0.9, 1.5]", "optim.betas: [0.9, 1.5] are not all in [0, 1)"),
        ("seed=-1", "seed: -1 is not a whole number from 0"),
        ("seed=4294967296", "seed: 4294967296 is not a whole number from 0"),
        ("name=!!binary aGk=", "tags (!!binary) are not supported; write a plain value"),
        ("model.residual.name=[a]", "model.residual.name: unknown variant '['a']'"),
        (
            "model.residual.num_blocks=4",
            "model.residual.num_blocks: unknown key of baseline; set model.residual.name: block",
        ),
        ("optim.lr=[", "not readable as a YAML value"),
    ],
)
def test_a_bad_override_dies_with_its_key_and_remedy(word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(TINY, parse_overrides([word]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "optim:\n  lr: 1\n  lr: 2\nbudget: 1 steps",
            "x.yaml:3: 'optim.lr' is given twice (first on line 2)",
        ),
        (
            "budget: 1 steps\nmodel:\n  dimm: 3",
            "x.yaml:3: model.dimm: unknown key, did you mean 'dim'?",
        ),
        ("budget: 1 steps\nmodel: {dim: wide}", "x.yaml:2: model.dim: should be a valid integer"),
        ("a: &x 1\nb: *x", "x.yaml:1: anchors and aliases are not supported"),
        (
            "name: !!python/object/apply:os.system ['true']",
            "x.yaml:1: tags (!!python/object/apply:os.system) are not supported",
        ),
        ("name: x\nseed: !!set {a}", "x.yaml:2: tags (!!set) are not supported"),
        ("name: !!timestamp 2001-01-01", "x.yaml:1: tags (!!timestamp) are not supported"),
        ("name: [", "x.yaml:1:"),
        (
            "budget:\n  steps: 1\n   tokens: 2",
            "x.yaml:3: mapping values are not allowed here; check the indentation of this line "
            "and the one above",
        ),
        ("- 1", "a mapping of keys is expected at the top, found list"),
        ("name: x", "budget: missing"),
        ("", "a mapping of keys is expected at the top"),
    ],
)
def test_a_bad_file_dies_with_file_line_and_key(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    assert message in str(caught.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"gone\.yaml: no such file, and no experiment is called so"
    ):
        load(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(UserError, match="not UTF-8"):
        load(tmp_path / "latin.yaml")


def test_numbers_mean_what_they_look_like() -> None:
    config = load(
        TINY,
        parse_overrides(
            ["optim.lr=1e-3", "budget=2e6 tokens", "optim.clip=1", "train.log_every=1e2"]
        ),
    )
    assert (config.optim.lr, config.budget, config.optim.clip, config.train.log_every) == (
        1e-3,
        Budget(2e6, "tokens"),
        1.0,
        100,
    )
    assert repr(load(TINY, parse_overrides(["budget=1e3 steps"])).steps) == "1000"


@given(st.floats(1e-3, 1e30), st.sampled_from(UNITS))
def test_a_budget_is_read_as_it_is_written(value: float, unit: str) -> None:
    budget = Budget(float(int(value) + 1) if unit == "steps" else value, unit)
    assert Budget.parse(str(budget)) == budget


def test_another_variant_drops_the_options_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("model: {residual: {name: block, num_blocks: 2}}\nbudget: 1 steps")
    assert load(path, {"model.residual.name": "full"}).variant == "full"
    assert load(path, {"model.residual.name": "block"}).variant == "block2"


def test_a_section_that_has_a_name_may_be_given_by_it_and_one_path_is_a_list(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("model: {residual: block}\nbudget: 1 steps")
    assert load(path, {"model.residual.num_blocks": 4}).variant == "block4"
    assert load(path, {"model.residual": "full"}) == load(path, {"model.residual.name": "full"})
    files = {"name": "files", "paths": "corpus/*.txt"}
    assert load(path, {"data.source": files}).data.source.paths == ("corpus/*.txt",)


def test_the_hash_is_the_science_not_the_names() -> None:
    base = content_hash(load(TINY))
    assert (
        content_hash(load(TINY, {"name": "other", "train.log_every": 3, "data.cache_dir": "x"}))
        == base
    )
    assert content_hash(load(TINY, {"optim.lr": 0.003})) == base
    changes = {"seed": 1, "optim.lr": 0.004, "model.residual.name": "full", "train.threads": 2}
    for key, value in changes.items():
        assert content_hash(load(TINY, {key: value})) != base


@given(st.text(st.characters(codec="utf-8", exclude_characters="$"), max_size=12))
@example("1e3")
@example("true")
@example("null")
@example(".inf")
def test_what_is_written_reads_back_equal(text: str) -> None:
    config = load(TINY)
    config = replace(config, data=replace(config.data, cache_dir=text))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_text(to_yaml(config), newline="")
        assert load(path) == config


def test_flatten_names_every_leaf_by_its_dotted_key() -> None:
    flat = flatten(load(TINY))
    nested = yaml.safe_load(to_yaml(load(TINY)))
    for dotted, value in flat.items():
        node = nested
        for part in dotted.split("."):
            node = node[part]
        assert node == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused_in_python_too(value: float) -> None:
    """With the key: no bound catches NaN by itself."""
    keys = [f.name for f in fields(OptimConfig) if f.type == "float"]
    assert len(keys) > 6
    for key in keys:
        with pytest.raises(ValueError, match=f"optim.{key}: {value} is not a finite number"):
            OptimConfig(**{key: value})
    with pytest.raises(ValueError, match=r"optim\.betas: "):
        OptimConfig(betas=(0.9, value))
    with pytest.raises(ValueError, match="budget: "):
        RunConfig(budget=Budget(value, "tokens"))


def test_numbers_beyond_64_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.log_every: \d+ does not fit into 64 bits"):
        TrainConfig(log_every=2**80)
    with pytest.raises(ValueError, match=r"train\.checkpoint_every: "):
        TrainConfig(checkpoint_every=2**80)


def test_a_caller_s_overrides_stay_as_they_are() -> None:
    """A later key may go into a mapping that an earlier one gave."""
    residual = {"name": "block", "num_blocks": 8}
    given = {"model.residual": residual, "model.residual.num_blocks": 2}
    assert load(TINY, given).variant == "block2"
    assert residual == {"name": "block", "num_blocks": 8}
    load(TINY, {"model.residual": residual, "model.residual.name": "full"})
    assert residual == {"name": "block", "num_blocks": 8}
