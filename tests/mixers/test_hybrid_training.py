"""The hybrid trunk in a run folder: it learns, its experts are counted, and it resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers import run_in_two_parts, same, tiny, weights

from attnres_lab.config import RunConfig
from attnres_lab.model.flops import num_params
from attnres_lab.runs.folder import RunFolder
from attnres_lab.training.run import run

ROOT = Path(__file__).parents[2]
MODEL = yaml.safe_load((ROOT / "experiments" / "kimi_nano.yaml").read_text())["model"]


def hybrid(folder: Path, **overrides: object) -> RunConfig:
    """The model of the experiment on a small corpus."""
    small = {f"model.{key}": value for key, value in MODEL.items()}
    return tiny(folder, **(small | {"model.num_layers": 4} | overrides))


@pytest.mark.parametrize("residual", ["baseline", "full", "block"])
def test_the_hybrid_learns_under_every_kind_of_residual_connection(
    tmp_path: Path, residual: str
) -> None:
    config = hybrid(tmp_path, **{"model.residual.name": residual, "train.log_every": 1})
    result = run(config, tmp_path / "run")
    rows = [row for row in RunFolder(tmp_path / "run").rows() if "train/loss" in row]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] - 1
    for layer in (3, 5, 7):  # the channel mixers but the first
        assert 1 <= rows[-1][f"moe/load/{layer:02d}"] <= 4
        assert 0 <= rows[-1][f"moe/dead/{layer:02d}"] < 8
    assert "moe/load/01" not in rows[-1]
    assert result.metrics["params_active"] == num_params(config.model).active
    assert result.metrics["params_active"] < result.metrics["params"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_hybrid_resumes_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    config = hybrid(tmp_path, **{"optim.name": optimizer, "train.micro_batch_size": 2})
    run(config, tmp_path / "whole")
    run_in_two_parts(config, tmp_path / "parts")
    found = weights(tmp_path / "parts")
    assert same(found, weights(tmp_path / "whole"))
    assert any(value.any() for key, value in found.items() if key.endswith("balance"))
