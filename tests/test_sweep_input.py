"""What a newcomer gets wrong in a sweep file, and what the lab says to it before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.report import write_report
from analysis.report.evidence import gather
from analysis.report.sections import verdict
from attnres_lab.cli.report import report
from attnres_lab.cli.sweep import status
from attnres_lab.config import load
from attnres_lab.data import prepare
from attnres_lab.errors import UserError
from attnres_lab.runs.folder import write_json
from attnres_lab.sweep.plan import Plan, make_plan
from attnres_lab.sweep.planview import print_plan
from attnres_lab.sweep.process import TRAIN
from attnres_lab.sweep.spec import load_spec
from attnres_lab.training import run as train
from tests.helpers import write_run
from tests.sweep.conftest import Lab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ATTNRES_CACHE", str(tmp_path / "cache"))
    return Lab(tmp_path)


def refusal(lab: Lab, **changes: Any) -> str:
    """The one line that making a plan of the changed sweep ends with."""
    with pytest.raises(UserError) as error:
        make_plan(load_spec(lab.sweep(**changes)), lab.folder).known()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_two_budgets_in_a_space_are_refused(lab: Lab) -> None:
    space = {"budget": ["20 steps"], "size": {"s": {"model.dim": 32, "budget": "1000 tokens"}}}
    message = refusal(lab, space=space)
    assert "sweep.yaml:" in message
    assert "sets budget, and so does" in message


def test_budgets_in_other_units_are_one_axis(lab: Lab) -> None:
    sizes = {
        "s": {"model.dim": 32, "budget": "20 steps"},
        "m": {"model.dim": 64, "budget": "2560 tokens"},
    }
    for space in ({"size": sizes}, {"budget": ["20 steps", "2560 tokens"]}):
        assert [t.config.steps for t in Plan(load_spec(lab.sweep(space=space))).known()] == [
            20,
            10,
        ]


def test_an_override_of_the_budget_replaces_that_of_the_base(lab: Lab) -> None:
    (trial,) = Plan(
        load_spec(lab.sweep(overrides={"budget": "2560 tokens"}, space={"seed": [0]}))
    ).known()
    assert trial.config.steps == 10


def test_every_column_of_a_plan_stands_under_its_own_heading(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lab.sweep(space={"model.dim": [32], "seed": [0]}, function=TRAIN)
    trial = Plan(load_spec(path)).known()[0].entry
    print_plan(load_spec(path), lab.folder)
    heads, cells = (line.split() for line in capsys.readouterr().out.splitlines()[:2])
    row = dict(zip(heads, cells, strict=True))
    assert row | {"time": ""} == {
        "trial": trial.hash,
        "run": "baseline-d32-L4-s0",
        "parameters": f"{trial.num_params:,}",
        "tokens": "2,560",  # 10 steps of 4 sequences of 64
        "FLOPs": f"{trial.flops:.2e}",
        "time": "",
        "state": "new",
        "point": "model.dim=32",
    }


def test_unknown_samplers_and_pruners_are_refused_before_a_folder_is_made(lab: Lab) -> None:
    assert "sweep.yaml:16: sampler.name: unknown sampler 'tpee', did you mean 'tpe'?" in refusal(
        lab, sampler={"name": "tpee"}, trials=2
    )
    assert "pruner.name: unknown pruner 'medain', did you mean 'median'?" in refusal(
        lab, pruner={"name": "medain"}
    )
    assert not lab.folder.path.exists()


def test_a_misspelt_objective_is_refused_and_whatever_a_result_holds_is_one(lab: Lab) -> None:
    trains = {"function": "attnres_lab.training.run:run"}
    message = refusal(lab, objective={"metric": "val/los"}, **trains)
    assert (
        "objective.metric: no result of a run is called 'val/los', did you mean 'val/loss'?"
        in message
    )
    # a function of its own names what it returns
    load_spec(lab.sweep(objective={"metric": "val/los"}))
    result = train.run(
        load(lab.path / "base.yaml", {"budget": "2 steps"}), lab.path / "run"
    ).metrics
    assert result
    load_spec(lab.sweep(objective=[{"metric": name} for name in result], **trains))


def test_run_files_and_sweep_files_are_told_apart(lab: Lab) -> None:
    with pytest.raises(UserError, match=r"base\.yaml: this is a run file; use attnres train"):
        load_spec(lab.path / "base.yaml")
    with pytest.raises(
        UserError, match=r"sweep\.yaml: this is a sweep file; use attnres sweep run"
    ):
        load(lab.sweep())


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"model": {"dim": [32, 64]}}, "write model.dim: [32, 64]"),
        ({"optim": {"lr": {"log": [1e-3, 1e-2, 3]}}}, 'write optim.lr: {"log": [0.001, 0.01, 3]}'),
    ],
)
def test_a_nested_section_is_answered_with_the_dotted_key(
    lab: Lab, space: dict[str, Any], words: str
) -> None:
    assert words in refusal(lab, space=space)


def test_a_grid_that_cannot_yield_a_gain_is_warned_of(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    def warned(space: dict[str, Any]) -> list[str]:
        print_plan(load_spec(lab.sweep(space=space)), lab.folder)
        return [
            line.split()[1]
            for line in capsys.readouterr().out.splitlines()
            if line.startswith("warning: ")
        ]

    arms = {
        "baseline": {"model.residual": {"name": "baseline"}},
        "full": {"model.residual": {"name": "full"}},
    }
    assert warned({"model.residual": [{"name": "full"}], "model.dim": [32, 64]}) == [
        "2",
        "one",
        "no",
    ]
    assert warned({"arm": arms, "model.dim": [32, 64, 96], "seed": [0, 1]}) == []
    assert warned({"optim.lr": [1e-3]}) == []  # no comparison of residual connections


def test_a_sweep_that_calls_itself_too_short_has_no_verdict(tmp_path: Path) -> None:
    """The same table, whose gain is plain, with and without ``verdict: false``."""
    rows = [
        {"variant": v, "size": s, "seed": 0, "flops": c, "tokens": c / 1e6, "val/loss": loss}
        for s, c in (("xs", 1e12), ("s", 1e13), ("m", 1e14), ("l", 1e15))
        for v, loss in (("baseline", (c / 1e12) ** -0.1), ("full", (1.5 * c / 1e12) ** -0.1))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    said = {}
    for judged in (True, False):
        spec = tmp_path / f"{judged}.yaml"
        spec.write_text(f"name: t\nverdict: {str(judged).lower()}\n")
        said[judged] = write_report(
            tmp_path / "runs.csv", tmp_path / "out", spec=spec
        ).markdown.read_text()
    for words in ("full is better", "## Compute-equivalent gain"):
        assert words in said[True]
        assert words not in said[False]
    assert "better" not in said[False]
    assert "No verdict: the sweep's own file says that it trains too little" in said[False]


def test_the_time_left_counts_as_many_workers_as_a_coordinator_would(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of four equal trials took an hour: of the three that are left two go first."""
    trials = [trial.entry for trial in Plan(load_spec(lab.sweep())).known()]
    done = lab.folder.trial(trials[0].hash)
    done.path.mkdir(parents=True)
    lab.folder.write_plan(trials)
    write_json(done.result, {"seconds": 3600.0, "flops": trials[0].flops})
    done.set_status("finished")
    status(lab.path / "sweep.yaml", scale=None, json=False, watch=False)
    assert "about 2:00:00 left" in capsys.readouterr().out


def test_a_report_opens_with_what_is_pending_and_without_runs_says_how_to_start(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = lab.sweep()
    with pytest.raises(
        UserError, match=r"^s: nothing has run yet; start it with: attnres sweep run .*sweep\.yaml"
    ):
        report(path, scale=None, out=None)
    trials = [trial.entry for trial in Plan(load_spec(path)).known()]
    for trial in trials:
        lab.folder.trial(trial.hash).path.mkdir(parents=True)
    lab.folder.write_plan(trials)
    lab.folder.trial(trials[0].hash).set_status("finished")
    table = pd.DataFrame(
        [
            {
                "variant": "baseline",
                "size": "d32-L4",
                "seed": 0,
                "flops": 1.0,
                "val/loss": 2.0,
                "status": "finished",
            }
        ]
    )
    table.to_csv(lab.path / "runs.csv", index=False)
    evidence = gather(lab.path / "runs.csv", path, lab.folder.path, None)
    assert verdict(evidence).startswith("> 1 of 4 trials: 3 are still to run.\n>\n> ")
    for trial in trials:
        lab.folder.trial(trial.hash).set_status("pruned")
    evidence = gather(lab.path / "runs.csv", path, lab.folder.path, None)
    assert "still to run" not in verdict(evidence)


def test_a_plan_names_the_passes_over_the_data(
    lab: Lab, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Before the corpus is prepared they are not known; after, they are its tokens' share."""
    base = write_run(tmp_path / "own" / "tiny.yaml", **{"budget": "100 steps"})
    space = {"budget": ["50 steps", "100 steps"]}
    path = lab.sweep(base=str(base), space=space, function=TRAIN)
    print_plan(load_spec(path), lab.folder)
    assert "data: not prepared yet, so passes over them are not known" in capsys.readouterr().out
    corpus = prepare(load(base).data)
    print_plan(load_spec(path), lab.folder)
    passes = 100 * 4 * 32 / corpus.train_tokens  # steps x sequences x their length
    said = f"data: at most {passes:.2g} passes over {corpus.train_tokens:,} training tokens"
    assert said in capsys.readouterr().out
