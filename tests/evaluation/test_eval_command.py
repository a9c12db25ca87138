"""``attnres eval`` on several runs, and what it refuses, without any training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.errors import UserError
from attnres_lab.evaluation import record
from attnres_lab.evaluation.record import Answers
from attnres_lab.evaluation.run import Settings, evaluate
from attnres_lab.runs.folder import RunFolder, Status, write_json
from attnres_lab.runs.sweep import Entry, SweepFolder

NANO = Settings(tasks=("nano",), limit=20)


def trained(folder: Path, message: str = "") -> RunFolder:
    """A finished run without a checkpoint."""
    files = RunFolder(folder)
    folder.mkdir(parents=True)
    write_json(files.result, {"val/loss": 3.0})
    files.set_status("finished", message=message, step=9)
    return files


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """A sweep of five trials, of which the last came from a table."""
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    sweep = SweepFolder.named("s")
    sweep.path.mkdir(parents=True)
    sweep.write_plan(Entry(f"t{n}", "p", {}, "full", "d8", n, f"r{n}", 1, 1, 1) for n in range(5))
    for n in range(5):
        trained(sweep.trial(f"t{n}").path, f"{Status.IMPORTED}runs.csv" if n == 4 else "")
    return sweep


def test_a_run_that_cannot_be_scored_holds_up_no_other_and_the_store_is_told_once(
    home: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Path] = []

    def score(folder: Path, settings: Settings, *, again: bool) -> dict[str, float]:
        if folder.name in ("t0", "t2"):
            raise UserError(f"{folder.name}: damaged")
        of = settings.wanted["nano"]
        answers = [Answers.mean("eval/nano_copy/acc", ["?"], [1.0, 0.0])]
        values = record.write(RunFolder(folder), "nano", of, answers)
        if folder.name == "t3":
            raise UserError("the second task: no such data")
        return values

    monkeypatch.setattr("attnres_lab.evaluation.run.evaluate", score)
    monkeypatch.setattr("attnres_lab.cli.eval._mirror", told.append)
    trained(alone := home.path.parent.parent / "train" / "one")
    result = CliRunner().invoke(app, ["eval", "s", str(alone)])
    assert isinstance(result.exception, UserError)
    lines = ["t0: damaged", "t2: damaged", "the second task: no such data"]
    assert str(result.exception).splitlines() == lines
    assert result.output.count("eval/nano_copy/acc") == 2
    assert "s: 1 imported, so without a model: left out" in result.output
    assert told == [home.path, alone]


def test_an_imported_run_has_no_model_to_be_scored(home: SweepFolder) -> None:
    with pytest.raises(UserError, match=r"t4: imported from runs.csv, and so without a model"):
        evaluate(home.trial("t4").path, NANO)


def test_a_lost_result_is_not_replaced_by_scores_alone(tmp_path: Path) -> None:
    """Training makes it again from the rows, unless one is there."""
    files = trained(tmp_path / "one")
    files.result.unlink()
    with pytest.raises(UserError, match="its result was lost; run it again, which makes it"):
        evaluate(files.path, NANO)
    assert not files.result.exists()


def test_the_scores_that_a_sweep_asks_for_are_not_replaced_by_others(tmp_path: Path) -> None:
    """Else the trial would be pending again."""
    files = trained(tmp_path / "one")
    write_json(files.wanted, {"tasks": ["nano"], "limit": 200, "batch_size": 16})
    for other in (Settings(tasks=("nano",)), NANO):
        with pytest.raises(UserError, match=r"eval.json: the sweep scores nano with limit: 200,"):
            evaluate(files.path, other, again=True)
    assert json.loads(files.result.read_text())["val/loss"] == 3.0
    with pytest.raises(UserError, match="No such file"):  # it got further: there is no model
        evaluate(files.path, Settings(tasks=("nano",), limit=200, batch_size=4))
