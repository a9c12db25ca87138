"""Training from given weights, and the way from transformers and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny as tiny_run
from helpers import write_run
from hub import clean, relative, save, tiny, tokens

from attnres_lab.config import RunConfig, content_hash, load
from attnres_lab.errors import UserError
from attnres_lab.pretrained import convert, export
from attnres_lab.training.checkpoint import load_model
from attnres_lab.training.run import run

BLOCK = {"model.residual": {"name": "block", "num_blocks": 3, "scale": "sum"}}
AFTER = """
import sys
sys.modules["attnres_lab"] = None
import torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained("exported", trust_remote_code=True)
with torch.no_grad():
    torch.save(model.eval()(torch.load("tokens.pt")).logits, "logits.pt")
"""


def continued(folder: Path, source: Path, **changes: Any) -> RunConfig:
    """Twelve steps, or what changes say, on random words from the weights in ``source``."""
    write_run(folder / "corpus.yaml")
    overrides = {
        "init_from": str(source),
        "budget": "12 steps",
        "data.source": {"name": "files", "paths": [str(folder / "corpus" / "*.txt")]},
        "data.cache_dir": str(folder / "cache"),
        "data.seq_len": 32,
        "data.val_tokens": 512,
        "data.val_fraction": 0.1,
        "train": {"batch_size": 4, "log_every": 4},
    }
    return load(source / "config.yaml", overrides | changes)


def test_a_model_goes_from_transformers_to_block_trains_and_goes_back(tmp_path: Path) -> None:
    """20 steps, then equal logits (2e-6) where this package cannot be imported."""
    convert(str(save(tiny("llama"), tmp_path / "source")), tmp_path / "base")
    config = continued(tmp_path, tmp_path / "base", **BLOCK, budget="20 steps")
    result = run(config, tmp_path / "run")
    assert result.status.state == "finished"
    model, _ = load_model(tmp_path / "run")
    assert model.residual.pseudo_query.abs().max() > 1e-3
    export(tmp_path / "run", tmp_path / "exported")
    torch.save(tokens(), tmp_path / "tokens.pt")
    clean(tmp_path, AFTER)
    with torch.no_grad():
        assert relative(torch.load(tmp_path / "logits.pt"), model(tokens())) < 2e-6


def test_training_starts_from_the_given_weights(tmp_path: Path) -> None:
    """At a rate of almost nothing the loss is that of the source, for Block as for the baseline;
    from a random start it is another.
    """
    convert(str(save(tiny("llama"), tmp_path / "source")), tmp_path / "base")
    losses = [
        run(
            continued(
                tmp_path, tmp_path / "base", **changes, **{"optim.lr": 1e-9, "budget": "1 steps"}
            ),
            tmp_path / str(index),
        ).metrics["val/loss"]
        for index, changes in enumerate(({}, BLOCK, {"init_from": None}))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert abs(losses[2] - losses[0]) > 1e-2


def test_a_frozen_trunk_stays_and_the_residual_learns(tmp_path: Path) -> None:
    convert(str(save(tiny("llama"), tmp_path / "source")), tmp_path / "base")
    changes = BLOCK | {"optim.freeze_trunk": True, "optim.residual_clip": 1.0}
    run(continued(tmp_path, tmp_path / "base", **changes), tmp_path / "run")
    (before, _), (after, _) = (load_model(tmp_path / name) for name in ("base", "run"))
    known = before.state_dict()
    for name, value in after.state_dict().items():
        assert torch.equal(value, known[name]) if name in known else value.abs().max() > 0, name
    with pytest.raises(UserError, match=r"optim\.freeze_trunk: baseline has no parameters beside"):
        continued(tmp_path, tmp_path / "base", **{"optim.freeze_trunk": True})


def test_identity_is_in_the_weights_and_not_in_their_place(tmp_path: Path) -> None:
    """Equal weights elsewhere are the same run, others are another; a new run whose source has
    changed or gone says so, a finished one needs it no more.
    """
    source = save(tiny("llama"), tmp_path / "source")
    for name in "ab":
        convert(str(source), tmp_path / name)
    (home, elsewhere), trained = (tmp_path / "a", tmp_path / "b"), tmp_path / "trained"
    config = continued(tmp_path, home)
    moved = continued(tmp_path, home, init_from=str(elsewhere))
    assert content_hash(moved) == content_hash(config)
    run(config, trained)
    further = continued(tmp_path, home, init_from=str(trained))
    assert content_hash(further) != content_hash(config)
    (home / "checkpoints" / "last.ckpt").unlink()
    assert run(load(trained / "config.yaml"), trained).status.state == "finished"
    with pytest.raises(UserError, match="there is no checkpoint here; attnres convert"):
        run(config, tmp_path / "again")
    (trained / "checkpoints" / "last.ckpt").rename(home / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="holds other weights than when this run was set up"):
        run(config, tmp_path / "and again")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    convert(
        str(save(tiny("llama"), tmp_path / "source")), tmp_path / "full", {"model.residual": "full"}
    )
    config = continued(tmp_path, tmp_path / "full", **{"model.residual": "baseline"})
    with pytest.raises(UserError, match=r"is a full-sum and has residual\.key_gain, which base"):
        run(config, tmp_path / "run")
    config = tiny_run(tmp_path, init_from=str(tmp_path / "full"), **{"model.residual": "full"})
    with pytest.raises(UserError, match="does not fit this model; take the sizes"):
        run(config, tmp_path / "other")
