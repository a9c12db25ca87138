"""What a plan says of time and memory, and of which machine it says it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnres_lab.config import RunConfig, load
from attnres_lab.errors import UserError
from attnres_lab.model import Transformer
from attnres_lab.model.flops import num_params
from attnres_lab.runs.folder import read_json, write_json
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.planview import print_plan
from attnres_lab.sweep.pricing import Speeds, check_memory, device_of, memory_needed
from attnres_lab.sweep.process import TRAIN
from attnres_lab.sweep.spec import load_spec
from tests.sweep.conftest import Lab

#: Name and memory in MiB.
GPU = ["NVIDIA H100", "0"]
HUGE = {"space": {"model.dim": [65536]}, "overrides": {"model.num_layers": 400}}
SEARCH = {
    "space": {"optim.lr": {"log": [1e-4, 1e-1]}, "seed": [0, 1]},
    "sampler": {"name": "random"},
    "trials": 3,
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNRES_CACHE", str(tmp_path / "cache"))


def sweep(lab: Lab, **changes: Any) -> Path:
    """One of training, which alone is priced."""
    return lab.sweep(**{"function": TRAIN} | changes)


def plan(lab: Lab, capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    print_plan(load_spec(sweep(lab, **changes)), lab.folder)
    return capsys.readouterr().out


def measured(lab: Lab, device: str, speed: float) -> None:
    """The trials of the plain sweep as if they had run at ``speed`` FLOP/s on ``device``."""
    trials = Plan(load_spec(sweep(lab))).known()
    for trial in trials:
        run = lab.folder.trial(trial.entry.hash)
        run.path.mkdir(parents=True, exist_ok=True)
        write_json(run.result, {"perf/flops_per_second": speed})
        write_json(run.environment, {"device": device})
    Speeds(device_of(load_spec(sweep(lab)).spec, trials, 1)).learn(
        (t, lab.folder.trial(t.entry.hash)) for t in trials
    )


def test_a_guess_is_called_a_guess(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    out = plan(lab, capsys)
    assert "a guess of 1e+10 FLOP/s (?): not measured on " in out
    assert "4 trials, 4 new, 0 pending, 0 done" in out


@pytest.mark.parametrize("changes", [{}, HUGE, SEARCH], ids=["grid", "huge", "search"])
def test_what_a_users_function_takes_is_not_known_and_not_priced(
    lab: Lab, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    """Nothing of our training is taken for it: no number, no refusal for want of memory."""
    function = "tests.sweep.synthetic:quick"
    out = plan(lab, capsys, function=function, **changes)
    said = f"not priced: {function} runs the trials; their parameters, tokens, FLOPs, time, memory"
    assert said in out
    ours = ("FLOP/s", "device-hours", "GB", "training tokens", " FLOPs in all")
    assert [word for word in ours if word in out] == []
    heads, *_ = out.splitlines()
    assert heads.split() == ["trial", "run", "state", "point"]
    if changes is SEARCH:
        assert "with what is proposed, expected: 6 trials\n" in out
    else:
        assert re.search(r"^\d trials, \d new, 0 pending, 0 done$", out, re.M)


@pytest.mark.parametrize("launcher", [{"name": "slurm"}, {"name": "ray"}])
def test_the_speed_of_this_machine_is_not_taken_for_that_of_a_cluster(
    lab: Lab, capsys: pytest.CaptureFixture[str], launcher: dict[str, str]
) -> None:
    here = device_of(load_spec(sweep(lab)).spec, [], 1).name
    measured(lab, here, 1e7)
    lab.folder.path.rename(lab.path / "elsewhere")  # a new sweep, the cache stays
    assert f"speed measured on {here}" in plan(lab, capsys)
    assert "not measured on the machines of this cluster; use --measure" in plan(
        lab, capsys, launcher=launcher
    )


def test_a_cluster_is_priced_by_the_device_that_the_file_names_or_its_runs_name(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten steps of the plain model at a speed at which each of the four trials takes an hour."""
    flops = Plan(load_spec(sweep(lab))).known()[0].entry.flops or 0
    measured(lab, "NVIDIA H100", flops / 3600)
    on = {"launcher": {"name": "slurm"}, "space": {"optim.lr": [5e-3, 6e-3], "seed": [0, 1]}}
    out = plan(lab, capsys, resources={"device": "NVIDIA H100"}, **on)
    assert "4 device-hours" in out
    assert "speed measured on NVIDIA H100" in out
    assert "not measured on NVIDIA A100" in plan(
        lab, capsys, resources={"device": "NVIDIA A100"}, **on
    )
    # four of its six trials have run there
    grown = {
        "optim.lr": [1e-3, 3e-3, 5e-3],
        "seed": [0, 1],
    }
    assert "speed measured on NVIDIA H100" in plan(
        lab, capsys, launcher={"name": "slurm"}, space=grown
    )


def test_what_cannot_fit_into_this_machine_is_refused_before_anything_starts(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep(lab, **HUGE)
    for what in (lambda: print_plan(load_spec(path), lab.folder), lambda: lab.run(path)):
        with pytest.raises(
            UserError,
            match=(
                r"baseline-d65536-L400-s0: needs at least \d+\.\d GB, .* has .*; set "
                r"train.micro_batch_size lower"
            ),
        ):
            what()
    assert not lab.folder.trials.exists()
    assert "to go: " in capsys.readouterr().out  # its price is known all the same


def test_what_fits_once_but_not_once_per_worker_is_refused(lab: Lab) -> None:
    source = load_spec(sweep(lab))
    trials = Plan(source).known()
    device = device_of(source.spec, trials, 64)
    check_memory(trials, device, source.spec)
    with pytest.raises(
        UserError, match=r"4000000 at a time need at least .* GB; set launcher.workers lower"
    ):
        check_memory(trials, device_of(source.spec, trials, 4_000_000), source.spec)


def test_what_fits_a_device_once_but_not_as_often_as_it_is_shared_is_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device with room for three and a half trials: three may share it, four may not."""
    trials = Plan(load_spec(sweep(lab))).known()
    room = 3.5 * max(memory_needed(t.config) for t in trials) / 2**20
    for module in ("pricing", "launchers.local"):
        monkeypatch.setattr(
            f"attnres_lab.sweep.{module}.nvidia_smi", lambda *names: [GPU[: len(names)]]
        )
    GPU[1] = str(room)
    local = {"launcher": {"name": "local"}}
    assert "0.333 devices a trial" in plan(lab, capsys, resources={"devices": 0.333}, **local)
    assert "with 3 at a time" in plan(lab, capsys, resources={"devices": 0.333}, **local)
    with pytest.raises(
        UserError, match=r"4 at a time need at least .* GB; set resources.devices h"
    ):
        plan(lab, capsys, resources={"devices": 0.25}, **local)
    assert "1 at a time" in plan(
        lab, capsys, resources={"devices": 0.25}, launcher={"name": "local", "workers": 1}
    )


def test_a_trial_over_nodes_costs_all_their_devices(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """An hour each on two nodes of four: four trials, 32 device-hours; the speed of one device is
    not that of eight.
    """
    flops = Plan(load_spec(sweep(lab))).known()[0].entry.flops or 0
    resources = {"nodes": 2, "devices": 4, "device": "NVIDIA H100"}
    wide = {"train.nodes": 2, "train.devices": 4, "train.batch_size": 8}
    on = {"launcher": {"name": "slurm"}, "resources": resources, "overrides": wide}
    measured(lab, "NVIDIA H100", 2 * flops / 3600)
    out = plan(lab, capsys, **on)
    assert "32 device-hours of 8 devices a trial" in out
    assert "of the nearest size or variant where marked ~" in out


def test_a_shared_device_has_a_speed_of_its_own(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(lab, "NVIDIA H100", 1e7)
    lab.folder.path.rename(lab.path / "elsewhere")
    on = {"launcher": {"name": "ray"}}
    assert "marked ~" not in plan(lab, capsys, resources={"device": "NVIDIA H100"}, **on)
    share = {"device": "NVIDIA H100", "devices": 0.25}
    assert "marked ~" in plan(lab, capsys, resources=share, **on)


@pytest.mark.parametrize("recompute", [False, True])
def test_memory_is_a_lower_bound_that_knows_experts(lab: Lab, recompute: bool) -> None:
    """Against what autograd keeps in a step: every tensor once, in bf16, without weights."""
    sizes = {"model.dim": 64, "model.num_layers": 6, "data.seq_len": 128}
    experts = {"model.mlp.name": "moe", "model.mlp.experts": 8, "model.mlp.top_k": 4}
    needs = []
    for mlp in ({}, experts):
        overrides = {**sizes, **mlp, "model.activation_checkpointing": recompute}
        config = load(lab.path / "base.yaml", overrides)
        need = memory_needed(config) - 16 * num_params(config.model).total
        assert need < kept(config)
        needs.append(need)
    assert needs[1] > 1.2 * needs[0] or recompute


def kept(config: RunConfig) -> float:
    """Bytes between forward and backward pass: what autograd saved, 2 bytes a number, and fp32
    logits with their gradient.
    """
    model = Transformer(config.model)
    own = {p.data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.is_floating_point() and x.untyped_storage().data_ptr() not in own:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // 2
        return x

    tokens = torch.zeros(config.train.micro, config.data.seq_len, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logits = model(tokens)
    return sum(saved.values()) + 2 * logits.numel() * 4


def test_the_memory_of_this_machine_says_nothing_of_a_cluster(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "1 trials, 1 new" in plan(lab, capsys, launcher={"name": "slurm"}, **HUGE)
    with pytest.raises(UserError, match=r"resources.memory_gb has 80.0"):
        plan(lab, capsys, launcher={"name": "slurm"}, resources={"memory_gb": 80}, **HUGE)


@pytest.mark.slow
def test_a_probe_measures_where_trials_would_run_and_leaves_no_trial(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep(lab, space={"optim.lr": [1e-3, 3e-3]})
    print_plan(load_spec(path), lab.folder, measure=True)
    out = capsys.readouterr().out
    assert "speed measured on " in out
    assert "~" not in out.split("2 trials")[0]
    (speeds,) = (read_json(lab.path / "cache" / "speed.json") or {}).values()
    assert len(speeds) == 1  # of the same size and variant
    assert not list(lab.folder.trials.iterdir())


def said(out: str, name: str) -> tuple[int, float]:
    """Trials and FLOPs of a line of the plan."""
    (line,) = re.findall(rf"with what is proposed, {name}: (\d+) trials, (\S+) FLOPs", out)
    return int(line[0]), float(line[1])


def test_a_search_is_priced_by_what_its_space_holds(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two widths and any learning rate: half of the points each are expected, at most all of the
    wide ones.
    """
    search = {"sampler": {"name": "random"}, "trials": 10}
    space = {"model.dim": [16, 64], "optim.lr": {"log": [1e-4, 1e-1]}, "seed": [0, 1]}
    out = plan(lab, capsys, space=space, **search)
    flops = {}
    for dim in (16, 64):
        source = load_spec(sweep(lab, space={"model.dim": [dim]}))
        flops[dim] = Plan(source).known()[0].entry.flops or 0.0
    trials, most = said(out, "at most")
    assert (trials, most) == (20, pytest.approx(20 * flops[64], rel=0.01))
    trials, expected = said(out, "expected")
    assert (trials, expected) == (20, pytest.approx(10 * sum(flops.values()), rel=0.15))
    small = plan(lab, capsys, space={"model.dim": [16, 64]}, **search)  # ends with two points
    assert said(small, "expected") == (2, pytest.approx(sum(flops.values()), rel=0.01))


def test_evaluations_are_priced_where_their_questions_are_known(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """At most 3 tasks x 10 questions x 4 choices x 64 tokens of a forward pass a trial."""
    trained = {"space": {"seed": [0, 1]}}
    out = plan(lab, capsys, eval={"tasks": ["nano", "arc_easy"], "limit": 10}, **trained)
    config = Plan(load_spec(sweep(lab))).known()[0].config
    flops = 2 * 3 * 10 * 4 * 64 * config.flops_per_token / 3
    assert f"and evaluations (nano): at most {flops:.3g} FLOPs, about" in out
    assert "and evaluations (arc_easy): not priced" in out
    assert "evaluations" not in plan(lab, capsys, **trained)
