"""val/loss is a curve that costs next to nothing and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import Crash, curve, tiny

from attnres_lab.config import RunConfig, content_hash, load
from attnres_lab.errors import UserError
from attnres_lab.model.flops import forward_flops_per_token
from attnres_lab.runs.folder import RunFolder
from attnres_lab.training.datamodule import CorpusDataModule
from attnres_lab.training.run import run
from attnres_lab.training.validation import MOST, SHARE, schedule

ROOT = Path(__file__).parents[1]
# 96 sequences to validate on is dear for 160 steps of 4: so a curve is drawn on a part
LONG = {"budget": "160 steps", "data.val_tokens": 96 * 32, "train.checkpoint_every": 50}


def cost(config: RunConfig, examples: int) -> tuple[int, float]:
    """Validations before the end, and their FLOPs by those of training."""
    found = schedule(config, examples)
    points = (config.steps - 1) // found.every if found.every else 0
    rows = -(-examples // found.stride)
    seq_len = config.data.seq_len
    forward = forward_flops_per_token(config.model, seq_len) * seq_len * rows * points
    return points, forward / (config.flops_per_token * config.tokens_per_step * config.steps)


@pytest.mark.parametrize("name", ["quickstart", "nano", "tiny", "small", "lab", "paper"])
@pytest.mark.parametrize("residual", ["baseline", "full"])
def test_a_curve_costs_less_than_two_per_cent_of_the_flops(name: str, residual: str) -> None:
    """Counted by the model's own formula, at every scale that is shipped."""
    config = load(ROOT / "experiments" / f"{name}.yaml", {"model.residual.name": residual})
    points, share = cost(config, config.data.val_tokens // config.data.seq_len)
    assert 5 <= points <= MOST
    assert 0 < share <= SHARE * (1 + 1e-9)


@pytest.mark.parametrize("steps", [1, 3, 7, 12, 50, 199, 10_000, 10**6])
@pytest.mark.parametrize("examples", [1, 16, 256, 100_000])
def test_no_run_pays_more_however_short_or_long(tmp_path: Path, steps: int, examples: int) -> None:
    config = tiny(tmp_path, budget=f"{steps} steps")
    points, share = cost(config, examples)
    assert points <= MOST
    assert share <= SHARE * (1 + 1e-9)


def test_what_is_asked_for_is_done(tmp_path: Path) -> None:
    assert schedule(tiny(tmp_path, **{"train.val_every": 7}), 1000).every == 7
    assert schedule(tiny(tmp_path, **{"train.val_every": 0}), 1).every == 0
    assert schedule(tiny(tmp_path, budget="60 seconds"), 1).every == 0
    with pytest.raises(UserError, match=r"train\.val_every: -1 is negative; 0: at the end only"):
        tiny(tmp_path, **{"train.val_every": -1})


def test_every_rank_has_a_batch_or_none_validates(tmp_path: Path) -> None:
    """A rank without one would leave the others waiting."""
    config = tiny(tmp_path, **LONG, **{"train.batch_size": 4})
    assert schedule(config, 96).every
    rows = 96 // schedule(config, 96).stride
    assert rows == 3
    for devices, every in ((2, True), (4, False)):  # of 2 rows and 1 row; of 1 row each and none
        many = replace(config, train=replace(config.train, devices=devices))
        assert bool(schedule(many, 96).every) == every


@pytest.mark.parametrize("examples", [1, 5, 8, 16])
def test_all_ranks_pass_equally_many_batches_and_each_counts_once(
    tmp_path: Path, examples: int
) -> None:
    """A forward pass of FSDP, and the sum over ranks, wait for all."""
    ranks = {"train.devices": 2, "train.strategy": "ddp", "train.device": "cpu"}
    config = tiny(tmp_path, **ranks, **{"data.val_tokens": 32 * examples})
    found = []
    for rank in range(2):
        data = CorpusDataModule(config)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        found.append((list(data.val_dataloader()), data.val_own))
    assert len(found[0][0]) == len(found[1][0]) == -(-examples // 4)
    assert sum(own for _, own in found) == -(-examples // 2)
    counted = [row for batches, own in found for batch in batches[: int(own)] for row in batch]
    whole = [row for batch in CorpusDataModule(config).val_batches() for row in batch]
    assert sorted(map(str, counted)) == sorted(map(str, whole))


def test_the_identity_of_a_run_does_not_depend_on_how_it_is_watched(tmp_path: Path) -> None:
    """Runs from before the default keep theirs; 0 is what the default was."""
    base = load(ROOT / "experiments" / "tiny.yaml")
    never = replace(base, train=replace(base.train, val_every=0))
    assert content_hash(never) == content_hash(base)


@pytest.mark.parametrize("residual", ["full", "baseline"])
def test_a_curve_changes_no_loss_and_draws_no_random_number(tmp_path: Path, residual: str) -> None:
    """Bit for bit the weights, rows and final numbers of a run that validates at its end only."""
    found = {}
    for every in (None, 0):
        more = {"model.residual.name": residual, "train.val_every": every}
        torch.manual_seed(0)
        result = run(tiny(tmp_path, **LONG, **more), tmp_path / f"{residual}{every}")
        files = RunFolder(tmp_path / f"{residual}{every}")
        rows = list(files.rows())
        steps = [row["step"] for row in rows if "val/loss" in row]
        weights = torch.load(files.checkpoint, weights_only=True)["state_dict"]
        losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
        found[every] = steps, weights, losses, result.metrics["val/loss"], torch.get_rng_state()
    steps, weights, losses, last, state = found[None]
    assert steps == [27, 54, 81, 108, 135, 160]
    assert found[0][0] == [160]
    assert losses == found[0][2]
    assert last == found[0][3]
    assert torch.equal(state, found[0][4])
    assert all(torch.equal(value, found[0][1][name]) for name, value in weights.items())


def test_an_interrupted_run_writes_the_same_curve(tmp_path: Path) -> None:
    config = tiny(tmp_path, **LONG)
    run(config, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        run(config, tmp_path / "parts", callbacks=[Crash(80)])
    run(config, tmp_path / "parts")
    assert curve(tmp_path / "parts", "val/loss") == curve(tmp_path / "whole", "val/loss")
    assert len(curve(tmp_path / "whole", "val/loss")) == 6


def test_the_curve_falls_and_ends_on_the_whole_set(tmp_path: Path) -> None:
    """A part that is spread evenly is near the whole, from which the last value is."""
    config = tiny(tmp_path, **LONG | {"budget": "120 steps", "optim.lr": 1e-2})
    result = run(config, tmp_path / "run")
    curve = [row["val/loss"] for row in RunFolder(tmp_path / "run").rows() if "val/loss" in row]
    assert curve[0] > curve[3] > curve[-1] == result.metrics["val/loss"]
    assert abs(curve[-2] - curve[-1]) < 0.5
