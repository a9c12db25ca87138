"""Pruning, stop rules, budgets, retries on request."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from attnres_lab.config import to_yaml
from attnres_lab.errors import UserError
from attnres_lab.sweep.launchers.local import LocalLauncher
from attnres_lab.sweep.optuna_study import OptunaStudy
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.process import execute
from attnres_lab.sweep.spec import load_spec
from tests.sweep.conftest import Lab, in_process, study_states

CHAIN = {"function": "tests.sweep.synthetic:chain"}


def test_a_bad_point_is_pruned_on_steps_and_its_losses_are_kept(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first points are good, the last one is far worse: its first seed is ended early, its
    second never starts.
    """
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.1")
    space = {"optim.lr": [3e-3, 3.1e-3, 9e-1], "seed": [0, 1]}
    pruner = {"name": "median", "options": {"n_startup_trials": 2, "n_warmup_steps": 2}}
    path = lab.sweep(space=space, pruner=pruner, launcher={"workers": 1}, **CHAIN)
    assert lab.run(path).exit_code == 0
    states = {
        (e.params["optim.lr"], e.seed): lab.folder.trial(e.hash).status().state
        for e in lab.folder.plan()
    }
    assert states == {
        (lr, s): "pruned" if lr == 9e-1 else "finished" for lr in space["optim.lr"] for s in (0, 1)
    }
    bad = next(e for e in lab.folder.plan() if e.params["optim.lr"] == 9e-1)
    rows = list(lab.folder.trial(bad.hash).rows())
    assert 2 < len(rows) < 10
    assert study_states(lab) == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert lab.run(path).exit_code == 0  # pruned is a result
    assert sum(line[0] == "start" for line in lab.witness()) == 5


def test_wilcoxon_gives_up_a_point_over_its_seeds(lab: Lab) -> None:
    space = {"optim.lr": [3e-3, 9e-1], "seed": list(range(8))}
    path = lab.sweep(space=space, pruner={"name": "wilcoxon"}, launcher={"workers": 1})
    assert lab.run(path).exit_code == 0
    states = [
        lab.folder.trial(e.hash).status().state
        for e in lab.folder.plan()
        if e.params["optim.lr"] == 9e-1
    ]
    assert 0 < states.count("finished") < 8
    assert states.count("finished") + states.count("pruned") == 8
    assert study_states(lab) == ["COMPLETE", "PRUNED"]


@pytest.mark.parametrize(
    ("pruner", "elsewhere"), [("median", True), ("wilcoxon", True), ("wilcoxon", False)]
)
def test_a_pruner_judges_a_trial_that_an_earlier_coordinator_started(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, pruner: str, elsewhere: bool
) -> None:
    """Whose study is lost; the trial still runs, or ended when nobody looked."""
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.05")
    path = lab.sweep(
        space={"optim.lr": [3e-3, 4e-3]}, pruner={"name": pruner}, launcher={"workers": 1}, **CHAIN
    )
    trial = Plan(load_spec(path)).known()[0]

    def adopt(self: LocalLauncher) -> list[str]:
        run = lab.folder.trial(trial.entry.hash)
        run.path.mkdir()
        run.write_config(to_yaml(trial.config))
        if elsewhere:
            self.start(run.path)
            return [trial.entry.hash]
        in_process(execute, run.path, CHAIN["function"]).join()
        return []

    monkeypatch.setattr(LocalLauncher, "adopt", adopt)
    assert lab.run(path).done == 2
    assert len(lab.witness()) == 4
    assert study_states(lab) == ["COMPLETE"] * 2


@pytest.mark.parametrize(
    ("rule", "done"),
    [
        ({"trials": 3}, 3),
        ({"device_hours": 0.025 / 3600}, 3),
        ({"no_improvement": 2}, 3),
        ({"flops": 1e30}, 6),
    ],
)
def test_a_stop_rule_ends_the_sweep_in_good_order(
    lab: Lab, rule: dict[str, float], done: int
) -> None:
    path = lab.sweep(
        space={"optim.lr": [3e-3, 4e-3, 5e-3, 6e-3, 7e-3, 8e-3]}, stop=rule, launcher={"workers": 1}
    )
    for _ in range(2):  # the second run starts nothing
        outcome = lab.run(path)
        assert (outcome.done, outcome.exit_code) == (done, 0)


def test_a_reached_rule_keeps_a_run_from_starting_and_says_so_and_a_retry_not(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    change = {"space": {"seed": [1, 0, 2, 4]}, "stop": {"trials": 1}, "launcher": {"workers": 1}}
    path = lab.sweep(function="tests.sweep.synthetic:fails", **change)
    lab.run(path)  # seed 1 fails, seed 0 is done
    failed = {"failed": 1, "finished": 1, "scheduled": 2}
    assert Counter(lab.states().values()) == failed
    capsys.readouterr()
    lab.run(path)
    out = capsys.readouterr().out
    assert "stop.trials is reached; to go on raise it" in out
    assert "go on: the same command" not in out
    assert Counter(lab.states().values()) == failed
    (run,) = [run for run in map(lab.folder.trial, lab.states()) if run.status().state == "failed"]
    before = run.config.stat().st_mtime_ns
    outcome = lab.run(path, again=())
    assert run.config.stat().st_mtime_ns > before, "it was started"
    assert (outcome.halted, outcome.exit_code) == ("", 1)
    assert "stop.trials" not in capsys.readouterr().out


def test_what_was_recorded_is_recalled_in_the_order_in_which_it_was(lab: Lab) -> None:
    """A search numbers points as it proposes them; no_improvement counts them as they end."""
    space = {"optim.lr": {"log": [1e-3, 1e-2]}, "seed": [0]}
    source = load_spec(lab.sweep(space=space, sampler={"name": "random"}, trials=3))
    lab.folder.path.mkdir(parents=True)

    def study() -> OptunaStudy:
        return OptunaStudy(source.spec, source.space, lab.folder.journal, print)

    first = study()
    for point in "abc":
        first.propose(), first.bind(point)
    for point in "cab":
        first.record(point, {}, [f"{point}0"], [1.0])
    again = study()
    again.reconcile({})
    assert list(again.recorded) == list("cab")


def test_a_budget_of_flops_that_whole_steps_miss_by_more_than_a_hundredth_is_refused(
    lab: Lab,
) -> None:
    step = Plan(load_spec(lab.sweep(space={"seed": [0]}))).known()[0].entry.flops
    assert step is not None
    step /= 10
    assert (
        Plan(load_spec(lab.sweep(space={"budget": [f"{100 * step} flops"]})))
        .known()[0]
        .config.steps
        == 100
    )
    with pytest.raises(
        UserError,
        match=(
            r":3: budget: baseline-d32-L4-s0: whole steps spend .* more than 1 % off; set "
            r"train.batch_size lower"
        ),
    ):
        lab.run(
            lab.sweep(
                f"name: s\nbase: base.yaml\nspace: {{budget: [{2.4 * step} flops]}}\nfunction: "
                "tests.sweep.synthetic:quick\n"
            )
        )


def test_a_run_that_spent_another_budget_is_no_result(lab: Lab) -> None:
    step = (Plan(load_spec(lab.sweep(space={"seed": [0]}))).known()[0].entry.flops or 0) / 10
    path = lab.sweep(
        space={"budget": [f"{k * step} flops" for k in (100, 200)]},
        function="tests.sweep.synthetic:spends_a_hundred",
    )
    lab.run(path)
    states = {
        float(e.params["budget"].split()[0]) / step: lab.folder.trial(e.hash).status()
        for e in lab.folder.plan()
    }
    assert states[100].state == "finished"
    assert states[200].state == "failed"
    assert "more than 1 % off" in states[200].message


def test_retry_runs_exactly_the_failed_or_exactly_the_named_trials(lab: Lab) -> None:
    path = lab.sweep(**CHAIN)
    lab.run(path)
    first = lab.folder.plan()[0]
    assert lab.run(path, again=[first.hash[:6]]).exit_code == 0
    starts = [line[1] for line in lab.witness() if line[0] == "start"]
    assert len(starts) == 5
    assert starts.count(first.hash) == 2
    assert len(list((lab.folder.path / "discarded").iterdir())) == 1
    assert lab.run(path, again=()).exit_code == 0  # nothing failed, nothing runs
    assert len([line for line in lab.witness() if line[0] == "start"]) == 5
    lab.folder.trial(first.hash).set_status("failed", failure="bug")
    lab.run(path, again=())
    assert [line[1] for line in lab.witness() if line[0] == "start"].count(first.hash) == 3
    with pytest.raises(UserError, match="nothing: 0 planned trials begin so"):
        lab.run(path, again=["nothing"])


def test_a_trial_out_of_time_goes_on_in_a_new_attempt(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.25")
    path = lab.sweep(space={"seed": [0]}, resources={"time_limit": 1.5 / 3600}, **CHAIN)
    assert lab.run(path).exit_code == 0
    starts = [int(line[2]) for line in lab.witness() if line[0] == "start"]
    assert len(starts) >= 2
    assert starts == sorted(set(starts))
    assert json.loads(lab.folder.trial(lab.folder.plan()[0].hash).result.read_text())["step"] == 10
