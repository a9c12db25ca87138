"""``eval:`` in a sweep file: the evaluation is a part of each trial, which has not ended before."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from attnres_lab.config import to_yaml
from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder, read_json, write_json
from attnres_lab.sweep import scoring
from attnres_lab.sweep.plan import make_plan
from attnres_lab.sweep.process import TRAIN
from attnres_lab.sweep.spec import load_spec
from tests.sweep.conftest import Lab, study_states
from tests.sweep.test_known import TABLE, elsewhere, exported

NANO = {"tasks": ["nano"], "limit": 10}
KEY = "eval/nano_shuffle/acc"


def sweep(lab: Lab, **changes: Any):
    return lab.sweep(
        **{
            "space": {"seed": [0, 1]},
            "function": TRAIN,
            "eval": NANO,
            "objective": {"metric": KEY, "direction": "maximize"},
            **changes,
        }
    )


def trained(lab: Lab) -> dict[str, tuple[int, int]]:
    """When each trial's checkpoint and rows were last written."""
    runs = [lab.folder.trial(entry.hash) for entry in lab.folder.plan()]
    return {
        r.path.name: (r.checkpoint.stat().st_mtime_ns, r.metrics.stat().st_mtime_ns) for r in runs
    }


def scores(lab: Lab) -> list[Any]:
    runs = [lab.folder.trial(entry.hash) for entry in lab.folder.plan()]
    return [(read_json(run.result) or {}).get(KEY) for run in runs]


def test_trials_are_scored_and_scores_are_objectives(lab: Lab) -> None:
    assert lab.run(sweep(lab)).done == 2
    assert all(isinstance(score, float) for score in scores(lab))
    assert study_states(lab) == ["COMPLETE"]


def test_an_evaluation_that_is_missing_is_made_without_training(lab: Lab) -> None:
    """Of a sweep that gets its ``eval`` later, too; and one that is there is not made again."""
    lab.run(sweep(lab, eval=None, objective={}))
    before = trained(lab)
    assert scores(lab) == [None, None]
    assert lab.run(sweep(lab)).done == 2
    assert None not in scores(lab)
    (lab.folder.trial(lab.folder.plan()[0].hash).artifacts / "eval" / "nano.json").unlink()
    kept = lab.folder.trial(lab.folder.plan()[1].hash).artifacts / "eval" / "nano.json"
    stamp = kept.stat().st_mtime_ns
    assert lab.run(sweep(lab)).exit_code == 0
    assert kept.stat().st_mtime_ns == stamp
    assert trained(lab) == before
    assert all(
        scoring.status(lab.folder.trial(h), load_spec(sweep(lab)).spec).state == "finished"
        for h in lab.states()
    )


def test_a_trial_that_is_killed_while_it_is_scored_is_scored_in_another_attempt(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scoring.make

    def dies_once(run: RunFolder) -> None:
        mark = run.path / "died"
        if not mark.exists():
            mark.write_bytes(run.checkpoint.read_bytes())
            os.kill(os.getpid(), signal.SIGKILL)
        whole(run)

    monkeypatch.setattr(scoring, "make", dies_once)
    outcome = lab.run(sweep(lab))
    assert (outcome.done, outcome.failed) == (2, 0)
    assert None not in scores(lab)
    for entry in lab.folder.plan():
        run = lab.folder.trial(entry.hash)
        assert (run.path / "died").exists()
        assert run.checkpoint.read_bytes() == (run.path / "died").read_bytes()
        assert run.status().state == "finished"


def test_an_evaluation_that_fails_is_a_failed_trial_with_its_reason(lab: Lab) -> None:
    outcome = lab.run(sweep(lab, eval={"tasks": ["gsm8k"], "data": str(lab.path / "no")}))
    assert outcome.failed == 2
    status = lab.folder.trial(lab.folder.plan()[0].hash).status()
    assert (status.state, status.failure) == ("failed", "config")
    assert status.message.endswith("no such folder")
    assert lab.run(sweep(lab)).done == 2  # mended


def test_a_trial_from_a_table_has_the_scores_of_the_table_and_is_not_made_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no model to be scored; where the table lacks an objective, a line says so."""
    trials = make_plan(load_spec(sweep(lab)), lab.folder).known()
    for trial, result in zip(trials, ({KEY: 0.5}, {"val/loss": 3.0}), strict=True):
        run = lab.folder.trial(trial.entry.hash)
        run.path.mkdir(parents=True)
        run.write_config(to_yaml(trial.config))
        write_json(run.result, result)
        run.set_status("finished", step=10)
    lab.folder.write_plan(trial.entry for trial in trials)
    clone = elsewhere(lab, monkeypatch)
    exported(lab, clone)
    outcome = clone.run(sweep(clone, known=TABLE))
    assert (outcome.done, outcome.exit_code) == (2, 0)
    runs = [clone.folder.trial(trial.entry.hash) for trial in trials]
    assert [run.status().imported for run in runs] == [TABLE, TABLE]
    assert scores(clone) == [0.5, None]
    assert f"objective.metric: {runs[1].path.name} has no number '{KEY}'" in capsys.readouterr().out


def test_bad_input_gets_one_line(lab: Lab) -> None:
    for changes, message in (
        ({"eval": {"tasks": []}}, "eval.tasks"),
        ({"eval": {"taks": ["nano"]}}, "eval.taks: unknown key, did you mean 'tasks'"),
        ({"function": "tests.sweep.synthetic:quick"}, "eval: it needs a model that was trained"),
        ({"eval": None}, "no result of a run is called 'eval/nano_shuffle/acc'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_spec(sweep(lab, **changes))
        assert "\n" not in str(error.value)


def test_a_harness_that_is_not_installed_is_said_before_anything_trains(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnres_lab.evaluation.harness.find_spec", lambda name: None)
    known = load_spec(sweep(lab, eval={"tasks": ["nano"]}))
    assert make_plan(known, lab.folder).known()
    asked = load_spec(sweep(lab, eval={"tasks": ["nano", "arc_easy"]}))
    with pytest.raises(UserError, match=r"eval\.tasks: arc_easy: lm_eval is not installed; "):
        make_plan(asked, lab.folder)
