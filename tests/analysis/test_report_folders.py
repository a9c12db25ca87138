"""A report takes its numbers from the run folders: no store can change a verdict."""

import contextlib
import shutil
import sqlite3

import pytest
from analysis_helpers import published
from typer.testing import CliRunner

from analysis.report import write_report
from attnres_lab.cli import app
from attnres_lab.runs import RunFolder, SweepFolder
from attnres_lab.runs.files import read_json, write_json

# MLflow with SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture
def demo(tracked, tmp_path, monkeypatch) -> SweepFolder:
    """A copy of the sweep ``demo`` with its store."""
    shutil.copytree(tracked.folder.parents[1], tmp_path / "runs")
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("analysis.plots.save", lambda figure, path: path.write_bytes(b"\x89PNG"))
    monkeypatch.setattr("attnres_lab.cli.report._store", lambda *_: None)
    return SweepFolder.named("demo")


def report(tracked, demo: SweepFolder) -> bytes:
    result = CliRunner().invoke(app, ["report", str(tracked.spec)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return (demo.path / "report" / "report.md").read_bytes()


def test_a_report_is_byte_equal_whatever_the_store_holds(tracked, demo, monkeypatch) -> None:
    before = report(tracked, demo)
    assert b"full is better" in before
    store = demo.path.parents[1] / "mlflow.db"
    with contextlib.closing(sqlite3.connect(store)) as database, database:
        database.execute("UPDATE latest_metrics SET value = 9 WHERE key = 'val/loss'")
        database.execute("DELETE FROM tags WHERE key = 'sweep' AND value = 'demo'")
    assert report(tracked, demo) == before
    store.unlink()
    assert report(tracked, demo) == before
    assert not store.exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert report(tracked, demo) == before


def test_a_stale_run_folder_changes_nothing_and_a_planned_one_does(tracked, demo) -> None:
    """The second half shows that the report could have changed."""
    before = report(tracked, demo)
    stale = RunFolder(demo.trials / "stale")
    shutil.copytree(demo.trial(demo.plan()[0].hash).path, stale.path)
    write_json(stale.result, {"val/loss": 0.1, "flops": 1e13, "step": 100})
    assert report(tracked, demo) == before
    for entry in demo.plan():
        if entry.variant == "full":
            write_json(demo.trial(entry.hash).result, {"val/loss": 9.0, "flops": entry.flops})
    assert report(tracked, demo) != before


def test_passes_are_each_run_s_own_over_its_own_corpus(tracked, demo) -> None:
    """A large run on a large corpus beside small ones on a small corpus: the most is a small run's
    100,000 over 50,000.
    """
    for entry in demo.plan():
        run, large = demo.trial(entry.hash), entry.variant == "full"
        environment = read_json(run.environment)
        write_json(run.environment, environment | {"train_tokens": 4_000_000 if large else 50_000})
        result = read_json(run.result)
        write_json(run.result, result | {"tokens": 4e5 if large else 1e5})
    assert b"at most 2 passes over the 50,000 training tokens" in report(tracked, demo)


def test_a_table_without_tokens_beside_folders_has_a_report(tracked, demo, tmp_path) -> None:
    """The passes are counted from the folders, whatever columns the table has."""
    published(tmp_path).drop(columns="tokens").to_csv(tmp_path / "runs.csv", index=False)
    written = write_report(tmp_path / "runs.csv", tmp_path / "out", folder=demo.path)
    assert "at most 1.6 passes over the 250,000 training tokens" in written.verdict
