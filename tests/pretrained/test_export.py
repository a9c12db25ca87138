"""What is exported loads in transformers without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hub import clean, kimi, relative, save, tiny, tokens
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.config import load
from attnres_lab.errors import UserError
from attnres_lab.model import Transformer
from attnres_lab.model.generate import generate
from attnres_lab.pretrained import convert, export
from attnres_lab.pretrained.convert import save as save_weights
from attnres_lab.runs.folder import RunFolder
from attnres_lab.training.checkpoint import load_model

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "full": (lambda: tiny("llama"), {"name": "full"}),
    "block": (lambda: tiny("qwen2"), {"name": "block", "num_blocks": 3}),
    "heads": (lambda: tiny("qwen3"), {"name": "block", "block_size": 3, "heads": "kv"}),
    "mean": (lambda: tiny("mistral", sliding_window=5), {"name": "full", "scale": "mean"}),
    "sigmoid": (
        lambda: tiny("llama"),
        {"name": "full", "mixing": "sigmoid", "key_norm": False, "temperature": 2.0},
    ),
    "sum": (lambda: tiny("llama"), {"name": "block", "num_blocks": 2, "output_read": False}),
    "kimi": (kimi, {"name": "block", "num_blocks": 4}),
    "fused": (
        lambda: tiny("phi3", rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        {"name": "block", "num_blocks": 2},
    ),
    "local": (lambda: tiny("smollm3", no_rope_layer_interval=2), {"name": "full"}),
}
#: Run where this package cannot be imported: logits, without and with a mask, and greedy tokens of
#: every folder.
CLEAN = """
import sys
sys.modules["attnres_lab"] = None
import copy, pathlib, torch, transformers
for folder in sorted(pathlib.Path("exported").iterdir()):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokens = torch.load("tokens.pt")
    padded = torch.cat([torch.zeros_like(tokens[:, :3]), tokens], 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    with torch.no_grad():
        found = {
            "logits": model(tokens).logits,
            "padded": model(padded, attention_mask=mask).logits[:, 3:],
            "greedy": model.generate(tokens, max_new_tokens=6, do_sample=False, eos_token_id=None),
            "alone": model.generate(
                tokens, max_new_tokens=6, do_sample=False, eos_token_id=None, use_cache=False
            ),
        }
        again = copy.deepcopy(model)
        model.residual.pseudo_query.zero_()
        found["copied"] = again(tokens).logits
    torch.save(found, f"{folder.name}.pt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("ab c").input_ids) == "ab c"
"""


def randomised(run: Path) -> Transformer:
    """The model of a converted folder with residual parameters that matter, saved there too."""
    model, config = load_model(run)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.residual.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    save_weights(RunFolder(run), config, model)
    return model


def test_without_this_package_transformers_has_our_logits_and_text(tmp_path: Path) -> None:
    """fp32 logits to 2e-6 (relative; under two kinds of attention to 4e-6, of Kimi Linear to 5e-5),
    padded on the left too where all is softmax attention, and greedy tokens, with and without a
    cache.
    """
    torch.save(tokens(12), tmp_path / "tokens.pt")
    models = {}
    for name, (make, residual) in CASES.items():
        convert(
            str(save(make(), tmp_path / "from" / name)),
            tmp_path / "run" / name,
            {"model.residual": residual},
        )
        models[name] = randomised(tmp_path / "run" / name)
        assert export(tmp_path / "run" / name, tmp_path / "exported" / name) == (
            "AttnResForCausalLM"
        )
    clean(tmp_path, CLEAN)
    for name, model in models.items():
        found = torch.load(tmp_path / f"{name}.pt")
        with torch.no_grad():
            expected = model(tokens(12))
        bound = {"kimi": 5e-5, "local": 4e-6}.get(name, 2e-6)
        assert relative(found["logits"], expected) < bound, name
        if name != "kimi":
            assert relative(found["padded"], expected) < 1e-5, name  # other angles
        assert torch.equal(found["copied"], found["logits"]), name
        greedy = torch.tensor(list(generate(model, tokens(12).tolist(), 6))).T
        assert torch.equal(found["greedy"][:, 12:], greedy), name
        assert torch.equal(found["alone"], found["greedy"]), name
    full, _ = load_model(tmp_path / "run" / "full")
    with torch.no_grad():
        full.residual.pseudo_query[3] = 0
        other = full(tokens(12))
    assert relative(torch.load(tmp_path / "full.pt")["logits"], other) > 1e-3


def test_any_run_of_ours_that_a_stock_class_computes_goes_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A model that was never converted: bytes as tokens, widths left to their defaults. Without a
    progress bar.
    """
    import transformers

    (tmp_path / "run.yaml").write_text(
        "model: {dim: 32, num_layers: 2, num_heads: 2}\nbudget: 1 steps\n"
    )
    config = load(tmp_path / "run.yaml")
    model = Transformer(config.model, seed=1).eval()
    (tmp_path / "run").mkdir()
    save_weights(RunFolder(tmp_path / "run"), config, model)
    capfd.readouterr()
    assert export(tmp_path / "run", tmp_path / "out") == "LlamaForCausalLM"
    assert capfd.readouterr() == ("", "")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    inputs = tokens() % 256
    with torch.no_grad():
        assert relative(theirs(inputs).logits, model(inputs)) < 1e-6
    words = ["export-hf", str(tmp_path / "run"), str(tmp_path / "half"), "--dtype", "bf16"]
    assert CliRunner().invoke(app, words).stdout.startswith("LlamaForCausalLM in ")
    with pytest.raises(UserError, match="half: is not empty"):
        export(tmp_path / "run", tmp_path / "half")
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("residual: {name: full, mixing: static}", r"model\.residual\.mixing: static"),
        ("residual: {name: full, query: input}", r"model\.residual\.query: input"),
        ("mixers: {attention: {output_gate: true}}", r"model\.mixers\.attention\.output_gate"),
        (
            "qk_norm: true, mixers: {attention: {rope: {fraction: 0.5}}}",
            r"model\.mixers\.attention\.rope\.frac",
        ),
        ("tie_embeddings: true", r"model\.scale_embeddings"),
        ("mlp: {name: moe, expert_dim: 8}", r"model\.mlp\.name"),
        ("mixers: {pattern: [attention, kda]}", r"model\.mixers\.pattern"),
    ],
)
def test_what_no_class_computes_is_refused_by_our_key(
    tmp_path: Path, options: str, message: str
) -> None:
    (tmp_path / "run.yaml").write_text(
        f"model: {{dim: 32, num_layers: 2, num_heads: 2, {options}}}\nbudget: 1 steps\n"
    )
    config = load(tmp_path / "run.yaml")
    (tmp_path / "run").mkdir()
    save_weights(RunFolder(tmp_path / "run"), config, Transformer(config.model))
    with pytest.raises(UserError, match=message):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
