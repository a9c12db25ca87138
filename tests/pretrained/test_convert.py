"""Models of transformers under our residual connections: the function is kept, and comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hub import kimi, relative, save, save_gguf, tiny, tokens
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.config import load
from attnres_lab.data.codec import load_codec
from attnres_lab.errors import UserError
from attnres_lab.pretrained import convert, export, names
from attnres_lab.runs.folder import RunFolder
from attnres_lab.runs.table import find, table
from attnres_lab.training.checkpoint import load_model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
HALF = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
WINDOWS = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
#: Layers with positions and a window, without positions, and with positions alone.
THREE = {
    "use_sliding_window": True,
    "sliding_window": 7,
    "no_rope_layers": [1, 0, 1, 1],
    "layer_types": ["sliding_attention"] + ["full_attention"] * 3,
}
MODELS: dict[str, Any] = {
    "llama": lambda: tiny("llama"),
    "llama3": lambda: tiny("llama", rope_parameters=LLAMA3, tie_word_embeddings=False),
    "yarn": lambda: tiny("qwen3", rope_parameters=YARN),
    "mistral": lambda: tiny("mistral", sliding_window=7),
    "ministral": lambda: tiny(
        "ministral", sliding_window=7, layer_types=["sliding_attention", "full_attention"] * 2
    ),
    "phi3": lambda: tiny("phi3", sliding_window=7, rope_parameters=HALF),
    "qwen2": lambda: tiny("qwen2"),
    "qwen2 windows": lambda: tiny("qwen2", **WINDOWS),
    "qwen3": lambda: tiny("qwen3"),
    "qwen3 windows": lambda: tiny("qwen3", **WINDOWS | {"max_window_layers": 0}),
    "smollm3": lambda: tiny("smollm3", no_rope_layer_interval=2),
    "smollm3 windows": lambda: tiny("smollm3", **THREE | {"no_rope_layers": [0, 1, 1, 1]}),
    "kimi": kimi,
}
RESIDUALS = {
    "baseline": {"model.residual": "baseline"},
    "full": {"model.residual": "full"},
    "block": {"model.residual": {"name": "block", "num_blocks": 3}},
    "heads": {"model.residual": {"name": "full", "heads": "kv"}},
    "sigmoid": {"model.residual": {"name": "block", "block_size": 3, "mixing": "sigmoid"}},
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_baseline_has_their_logits_and_goes_back_exactly(tmp_path: Path, kind: str) -> None:
    """fp32 logits to 1e-6 (relative; Kimi Linear to 8e-6, KDA being another form of the same sum,
    whose last digits depend on the processor); the weights that come back are the same bits.
    """
    theirs = MODELS[kind]()
    convert(str(save(theirs, tmp_path / "source")), tmp_path / "run")
    model, _ = load_model(tmp_path / "run")
    with torch.no_grad():
        expected = theirs(tokens()).logits
        assert relative(model(tokens()), expected) < (8e-6 if kind == "kimi" else 1e-6)
        assert export(tmp_path / "run", tmp_path / "back") == type(theirs).__name__
        back = type(theirs).from_pretrained(tmp_path / "back").eval()
        assert torch.equal(back(tokens()).logits, expected)
    for name, value in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "smollm3"])
@pytest.mark.parametrize("residual", RESIDUALS)
def test_reads_keep_the_function_and_the_trunks_gradients(
    tmp_path: Path, kind: str, residual: str
) -> None:
    """At eps 1e-5 with embeddings of std 0.02: logits to 1e-6 in fp32, and in fp64 to 1e-12 with
    gradients to 1e-6.
    """
    theirs = MODELS[kind]()
    source = save(theirs, tmp_path / "source")
    convert(str(source), tmp_path / "run", RESIDUALS[residual])
    model, _ = load_model(tmp_path / "run")
    with torch.no_grad():
        assert relative(model(tokens()), theirs(tokens()).logits) < 1e-6
    model, theirs = model.double(), theirs.double()
    logits, expected = model(tokens()), theirs(tokens()).logits
    for out in (logits, expected):
        F.cross_entropy(out[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()).backward()
    gradients = {k: p.grad for k, p in theirs.named_parameters(remove_duplicate=False)}
    table = names.table(model)
    for name, parameter in model.named_parameters():
        if not name.startswith("residual."):
            other = torch.cat([gradients[n] for n in table[name]]).reshape(parameter.shape)
            assert parameter.grad is not None
            assert relative(parameter.grad, other) < 1e-6, name


def test_the_eps_is_what_the_sums_are_for(tmp_path: Path) -> None:
    """As means, reads of these small embeddings are off a hundred times as far."""
    theirs = tiny("llama")
    source = save(theirs, tmp_path / "source")
    convert(
        str(source), tmp_path / "run", {"model.residual": "full", "model.residual.scale": "mean"}
    )
    model, _ = load_model(tmp_path / "run")
    with torch.no_grad():
        assert relative(model(tokens()), theirs(tokens()).logits) > 1e-4


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("bug", ["halves", "key for value", "gate for up"])
def test_the_comparison_notices(tmp_path: Path, kind: str, bug: str) -> None:
    """Weights in another order show in the logits a thousand times over."""
    theirs = MODELS[kind]()
    convert(str(save(theirs, tmp_path / "source")), tmp_path / "run")
    model, _ = load_model(tmp_path / "run")
    with torch.no_grad():
        for sublayer in model.sublayers:
            if bug == "halves" and hasattr(sublayer, "q"):  # pairs (2i, 2i + 1)
                q = sublayer.q.weight.view(sublayer.heads, 2, -1, 48)
                sublayer.q.weight.copy_(q.transpose(1, 2).reshape(sublayer.q.weight.shape))
            if bug == "key for value" and hasattr(sublayer, "kv"):
                sublayer.kv.weight.copy_(sublayer.kv.weight.roll(len(sublayer.kv.weight) // 2, 0))
            if bug == "gate for up" and hasattr(sublayer, "gate_up"):
                w = sublayer.gate_up.weight
                w.copy_(w.roll(len(w) // 2, 0))
        assert relative(model(tokens()), theirs(tokens()).logits) > 1e-3


def test_the_folder_is_a_runs_and_holds_the_chat_template(tmp_path: Path) -> None:
    """The command writes what other commands read; a sharded source is one too."""
    import transformers

    save(tiny("llama"), tmp_path / "source", max_shard_size="40KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 1
    words = ["convert", str(tmp_path / "source"), str(tmp_path / "run")]
    options = ["--residual", "block", "--num-blocks", "2", "model.residual.heads=2"]
    result = CliRunner().invoke(app, [*words, *options], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.startswith("block2-h2-sum-d48-L4, ")
    config = load(tmp_path / "run" / "config.yaml")
    assert config.model.residual.label == "block2-h2-sum"
    assert config.optim.lr <= 1e-4  # training on starts from what was learned
    assert RunFolder(tmp_path / "run").status().state == "finished"
    (record,) = table(find(tmp_path / "run"))
    assert record["state"] == "finished"
    prompt = ["generate", str(tmp_path / "run"), "--prompt", "ab", "--max-new-tokens", "3"]
    assert CliRunner().invoke(app, prompt, catch_exceptions=False).stdout.startswith("ab")
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(config.data.tokenizer).parent)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert text == "<s>ab</s>"


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gpt2", {}, "model_type: gpt2 is not supported"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ("llama", {"attention_bias": True}, "attention_bias: True"),
        ("qwen3", {"rope_parameters": HALF}, r"rope_parameters\.partial_rotary_factor: 0\.5"),
        ("phi3", {"resid_pdrop": 0.1}, r"resid_pdrop: 0\.1"),
        ("llama", {"mlp_bias": True}, "mlp_bias: True"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            r"rope_parameters\.rope_type \(rope_scaling\): 'linear'",
        ),
        ("smollm3", THREE, "layer_types, no_rope_layers: 3 kinds of attention are not supported"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 4}, "layer_types: 'chunked_attention'"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(
    tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    transformers = pytest.importorskip("transformers")
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2)
        config.save_pretrained(tmp_path / "source")
    else:
        save(tiny(kind, **changes), tmp_path / "source")
    with pytest.raises(UserError, match=message):
        convert(str(tmp_path / "source"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _damage(folder: Path, what: str) -> str:
    """Damage a saved source; returns what to expect."""
    weights = folder / "model.safetensors"
    if what == "missing":
        weights.unlink()
        return "no model.safetensors and no model.safetensors.index.json"
    if what == "pickled":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"x")
        return "pickled weights can run code and are refused"
    if what == "corrupt":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        return "the weights cannot be read"
    if what == "renamed":
        from safetensors.torch import load_file, save_file

        content = load_file(weights)
        content["model.other.weight"] = content.pop("model.layers.0.self_attn.q_proj.weight")
        save_file(content, weights, metadata={"format": "pt"})
        return "the weights do not fit the config: missing model.layers.0.self_attn.q_proj.weight"
    if what == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        return "no tokenizer.json"
    if what == "no config":
        (folder / "config.json").unlink()
        return "no config.json"
    (folder / "config.json").write_text("{")
    return "the config cannot be read"


@pytest.mark.parametrize(
    "what",
    ["missing", "pickled", "corrupt", "renamed", "no tokenizer", "no config", "bad config"],
)
def test_bad_input_gets_one_line(tmp_path: Path, what: str) -> None:
    source = save(tiny("llama"), tmp_path / "source")
    expected = _damage(source, what)
    with pytest.raises(UserError) as caught:
        convert(str(source), tmp_path / "run")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_gguf_file_is_the_model_that_was_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The logits of the model in it, without a progress bar; half of the file gets one line."""
    pytest.importorskip("gguf")
    theirs = tiny("llama")
    path = save_gguf(theirs, tmp_path / "model.gguf")
    capfd.readouterr()
    convert(str(path), tmp_path / "run", {"model.residual": "full"})
    assert capfd.readouterr() == ("", "")
    model, config = load_model(tmp_path / "run")
    with torch.no_grad():
        assert relative(model(tokens()), theirs(tokens()).logits) < 1e-6
    assert load_codec(config.data.tokenizer).encode("ab") != []
    half = tmp_path / "half.gguf"
    half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        UserError, match=r"half\.gguf: the (config|weights) cannot be read"
    ) as caught:
        convert(str(half), tmp_path / "other")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "other").exists()


def test_other_bad_input_gets_one_line(tmp_path: Path) -> None:
    source = save(tiny("llama"), tmp_path / "source", max_shard_size="40KB")
    shards = sorted(source.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"1 of \d+ shards are missing: {shards[1].name}"):
        convert(str(source), tmp_path / "run")
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match=r"noise\.gguf: the config cannot be read"):
        convert(str(tmp_path / "noise.gguf"), tmp_path / "run")
    with pytest.raises(UserError, match=r"gone\.gguf: no such file"):
        convert(str(tmp_path / "gone.gguf"), tmp_path / "run")
    with pytest.raises(UserError, match="nothing: not a folder with config"):
        convert(str(tmp_path / "nothing"), tmp_path / "run")
    good = save(tiny("llama"), tmp_path / "good")
    with pytest.raises(UserError, match="full-sum-w2 does not start as the baseline"):
        convert(str(good), tmp_path / "run", {"model.residual": {"name": "full", "window": 2}})
    convert(str(good), tmp_path / "run")
    with pytest.raises(UserError, match="run: is not empty"):
        convert(str(good), tmp_path / "run")


def test_what_no_class_computes_is_not_exported(tmp_path: Path) -> None:
    """By our key: an option of the trunk, and a residual connection."""
    source = save(tiny("llama"), tmp_path / "source")
    for name, overrides, message in (
        ("scaled", {"model.scale_embeddings": True}, r"model\.scale_embeddings: True"),
        ("delta", {"model.residual": "delta"}, r"model\.residual\.name: delta has no export"),
    ):
        convert(str(source), tmp_path / name, overrides)
        with pytest.raises(UserError, match=message):
            export(tmp_path / name, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    assert json.loads((source / "config.json").read_text())["model_type"] == "llama"
