"""Scores of an evaluation are in the store beside the run."""

from __future__ import annotations

import pytest
from helpers import tiny
from test_sweep_mirror import mirror_sweep
from tracking_helpers import write_sweep
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.evaluation import record
from attnres_lab.evaluation.record import Answers
from attnres_lab.runs.folder import RunFolder, read_json
from attnres_lab.tracking import connect, rebuild
from attnres_lab.training.run import run

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


def test_scores_are_in_the_store_beside_the_run(runs):
    folder = runs / "train" / "one"
    run(tiny(runs.parent), folder)
    for limit in (5, 9):  # scored again under other settings: the store shows the later ones
        words = ["eval", str(folder), "--limit", str(limit)]
        CliRunner().invoke(app, words, catch_exceptions=False)
        store = connect()
        (found,) = store.client.search_runs([store.experiment_id])
        result = read_json(RunFolder(folder).result) or {}
        scores = {key: value for key, value in result.items() if key.startswith("eval/")}
        assert scores
        shown = {k: v for k, v in found.data.metrics.items() if k.startswith("eval/")}
        assert shown == scores
        artifacts = store.client.list_artifacts(found.info.run_id, "eval")
        assert [file.path for file in artifacts] == ["eval/nano.json"]


def test_scores_of_a_sweeps_trials_reach_a_store_that_had_the_whole_sweep(runs):
    home = runs / "sweeps" / "quick"
    write_sweep(home, seeds=(0,))
    mirror_sweep(home, {})
    answers = [Answers.mean("eval/nano_copy/acc", ["one?", "two?"], [1.0, 0.0])]
    record.write(RunFolder(home / "trials" / "full0"), "nano", {"limit": 2}, answers)
    list(rebuild(home))
    store = connect()
    found = store.client.search_runs([store.experiment_id], "tags.kind = 'run'")
    shown = {run.data.tags["trial"]: run.data.metrics.get("eval/nano_copy/acc") for run in found}
    assert shown == {"baseline0": None, "full0": 0.5}
