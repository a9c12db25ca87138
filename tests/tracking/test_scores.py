"""Scores of an evaluation are in the store beside the run."""

from __future__ import annotations

import pytest
from helpers import tiny
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.runs.folder import RunFolder, read_json
from attnres_lab.tracking import connect
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
