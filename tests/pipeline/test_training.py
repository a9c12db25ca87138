"""A run over two ranks of a pipeline against the run of one process: numbers, files, resume, and
checkpoints that change layout.
"""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers import tiny

from attnres_lab import run
from attnres_lab.config import RunConfig, content_hash, load, to_yaml
from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder

BASE = {
    "model.residual": {"name": "block", "block_size": 3},
    "model.num_layers": 4,
    "model.tie_embeddings": True,
    "optim.residual_clip": 0.5,
    "train.device": "cpu",
    "train.batch_size": 8,
    "train.val_every": 6,
}
PIPED = {
    "train.devices": 2,
    "train.strategy": "pipeline",
    "train.pipeline": {"virtual_stages": 2, "schedule": "Interleaved1F1B", "microbatches": 4},
}


def saved(folder: Path) -> dict:
    return torch.load(RunFolder(folder).checkpoint, weights_only=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return saved(folder)["state_dict"]


def relabelled(source: Path, config: RunConfig, folder: Path) -> None:
    """The checkpoint of ``source`` as one of ``config``."""
    checkpoint = saved(source)
    checkpoint |= {"config": to_yaml(config), "config_hash": content_hash(config)}
    RunFolder(folder).checkpoint.parent.mkdir(parents=True)
    torch.save(checkpoint, RunFolder(folder).checkpoint)


def stopped(config: RunConfig, folder: Path) -> Path:
    """A run that was asked to stop at its first row, at step 4."""
    folder.mkdir()
    RunFolder(folder).stop.touch()
    assert run(config, folder).status.state == "stopped"
    RunFolder(folder).stop.unlink(missing_ok=True)
    assert saved(folder)["run"]["step"] == 4
    return folder


@pytest.mark.slow
def test_a_pipeline_trains_as_one_process(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    whole = run(tiny(tmp_path, **BASE), one).metrics
    piped = run(tiny(tmp_path, **BASE, **PIPED), two).metrics
    for key in ("val/loss", "train/loss", "optim/grad_norm"):
        assert piped[key] == pytest.approx(whole[key], rel=1e-5), key
    assert piped["tokens"] == whole["tokens"]
    rows = [[r["step"] for r in RunFolder(f).rows() if "val/loss" in r] for f in (one, two)]
    assert rows == [[6, 12], [6, 12]]
    a, b = saved(one), saved(two)
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name, weight in a["state_dict"].items():
        torch.testing.assert_close(b["state_dict"][name], weight, rtol=1e-4, atol=1e-5)
    (ours,), (theirs,) = b["optimizer_states"], a["optimizer_states"]
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    depth = [json.loads((f / "artifacts/depth/step-000012.json").read_text()) for f in (one, two)]
    assert [len(d["gradient_norm"]) for d in depth] == [8, 8]
    sources = [[read["sources"] for read in record["reads"]] for record in depth]
    assert sources[0] == sources[1]
    assert depth[1]["update_ratio"] == pytest.approx(depth[0]["update_ratio"], rel=1e-4)


@pytest.mark.slow
def test_resumed_it_is_the_same_and_goes_on_in_another_layout(tmp_path: Path) -> None:
    """To the bit in its own layout; elsewhere to fp32 rounding, for sums are made in another
    order.
    """
    config, single = tiny(tmp_path, **BASE, **PIPED), tiny(tmp_path, **BASE)
    run(config, tmp_path / "whole")
    folder = stopped(config, tmp_path / "stopped")
    relabelled(folder, single, tmp_path / "single")
    run(single, tmp_path / "single")
    run(config, folder)
    unbroken = weights(tmp_path / "whole")
    for name, weight in weights(folder).items():
        assert torch.equal(weight, unbroken[name]), name
    for name, weight in weights(tmp_path / "single").items():
        torch.testing.assert_close(weight, unbroken[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_checkpoint_of_one_process_goes_on_as_a_pipeline(tmp_path: Path) -> None:
    config, single = tiny(tmp_path, **BASE, **PIPED), tiny(tmp_path, **BASE)
    relabelled(stopped(single, tmp_path / "stopped"), config, tmp_path / "two")
    run(config, tmp_path / "two")
    run(single, tmp_path / "stopped")
    unbroken = weights(tmp_path / "stopped")
    for name, weight in weights(tmp_path / "two").items():
        torch.testing.assert_close(weight, unbroken[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.pipeline.virtual_stages": 3}, "8 sublayers do not divide into 2 ranks x 3 stages"),
        ({"train.pipeline.microbatches": 1}, "microbatches: 1 are fewer than the 2 ranks"),
        ({"train.devices": 1}, "train.devices: a pipeline needs 2 ranks or more"),
        ({"train.devices": 3, "train.pipeline.ranks": 2}, "3 processes are no whole number of"),
        ({"train.pipeline.microbatches": 3}, "train.batch_size: 8 is not a multiple of 3 micro"),
        ({"train.pipeline.schedule": "ZBVZeroBubble"}, "ZBVZeroBubble is V-shaped"),
        ({"train.pipeline.schedule": "InterleavedZeroBubble"}, "splits the backward pass"),
        ({"train.pipeline.schedule": "DualPipeV"}, "DualPipeV is V-shaped"),
        ({"train.pipeline.schedule": "LoopedBSF"}, "did you mean 'LoopedBFS'"),
        ({"train.pipeline.schedule": "1F1B"}, "1F1B has one stage per rank"),
        ({"train.micro_batch_size": 2}, "train.micro_batch_size: a pipeline does not take it"),
        ({"train.compile": True}, "train.compile: a pipeline does not take it"),
        ({"train.strategy": "ddp"}, "train.pipeline: is read by train.strategy: pipeline only"),
    ],
)
def test_what_cannot_be_laid_out_is_refused_at_load(
    tmp_path: Path, overrides: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tiny(tmp_path, **deepcopy(BASE | PIPED | overrides))


def test_ranks_that_torchrun_did_not_start_are_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be waited for."""
    config = tiny(tmp_path, **BASE, **PIPED)
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"wants 1 x 2 processes, and torchrun started 1; give"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_runs_keep_their_identity(tmp_path: Path) -> None:
    """What a pipeline is told is no part of a run without one."""
    config = tiny(tmp_path)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config).replace("    caching: true\n", ""))
    assert "caching" in to_yaml(config)
    assert content_hash(load(again)) == content_hash(config)
    assert content_hash(tiny(tmp_path, **BASE, **PIPED)) != content_hash(tiny(tmp_path, **BASE))
