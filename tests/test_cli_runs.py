"""``attnres runs`` and the sweeps by name: sorted, filtered, compared, listed, removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from attnres_lab.analysis import load_runs
from attnres_lab.config import content_hash, load
from attnres_lab.errors import UserError
from attnres_lab.runs.files import write_json
from attnres_lab.runs.table import find, locate, select, table
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.spec import load_spec
from tests.sweep.conftest import Lab
from tests.test_cli import attnres

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

SPACE = {"model.residual": ["baseline", "full"], "optim.lr": [0.001, 0.01], "seed": [0]}


def lab_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab whose runs the commands find, and whose trials begin at once."""
    lab = Lab(tmp_path)
    monkeypatch.setenv("ATTNRES_RUNS", str(lab.folder.path.parents[1]))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("attnres_lab.sweep.launchers.local.START_METHOD", "fork")
    return lab


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A sweep of four trials that ran."""
    lab = lab_here(tmp_path, monkeypatch)
    lab.run(lab.sweep(space=SPACE))
    for entry in lab.folder.plan():  # as training writes it
        labels = {key: getattr(entry, key) for key in ("run_name", "variant", "size", "seed")}
        config = {"optim.lr": entry.params["optim.lr"], "model.dim": 32}
        write_json(lab.folder.trial(entry.hash).environment, {**labels, "config": config})
    return lab


def test_records_are_filtered_and_sorted_by_any_column_or_config_key(done: Lab) -> None:
    records = table(find())
    full = select(records, ["variant=full"], "-optim.lr")
    assert [r["config/optim.lr"] for r in full] == [0.01, 0.001]
    assert {r["variant"] for r in full} == {"full"}
    assert len(select(records, ["variant!=full", "optim.lr<0.005"])) == 1
    assert len(select(records, ["state=finished", "optim.lr>1"])) == 0
    losses = [r["val/loss"] for r in select(records, [], "val/loss")]
    assert losses == sorted(losses)
    assert select([{"a": None}, {"a": 2}, {"a": 1}], [], "-a") == [{"a": 2}, {"a": 1}, {"a": None}]
    losses = [10.5, "nan", 9.5, "inf", None]  # as result.json has them
    ordered = [r["a"] for r in select([{"a": loss} for loss in losses], [], "a")]
    assert ordered == [9.5, 10.5, "inf", "nan", None]
    with pytest.raises(UserError, match="varaint: no run has such a column, did you mean"):
        select(records, ["varaint=full"])
    with pytest.raises(UserError, match="write column=value"):
        select(records, ["variant"])


def test_the_status_of_a_sweep_can_be_read_on_a_smaller_machine(
    done: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = done.sweep(space=SPACE, launcher={"workers": 10**6})  # no machine runs so many
    assert attnres(monkeypatch, "sweep", "status", str(path)) == 0
    assert "4/4 done" in capsys.readouterr().out


def test_a_run_is_found_by_the_beginning_of_its_hash_and_by_its_name(done: Lab) -> None:
    entries = done.folder.plan()
    assert locate(entries[0].hash[:8]).name == entries[0].hash
    with pytest.raises(UserError, match=r"runs begin so, .*; give a hash"):
        locate("baseline-")
    with pytest.raises(UserError, match="no run is called so; 'attnres runs list'"):
        locate("nothing")


def test_a_hash_is_the_run_of_the_plan_before_what_was_discarded_of_it(done: Lab) -> None:
    """``sweep retry`` keeps a result under its hash and the time."""
    run = done.folder.trial(done.folder.plan()[0].hash).path
    kept = done.folder.path / "discarded" / f"{run.name}-1"
    shutil.copytree(run, kept)
    assert locate(run.name[:8]) == run
    shutil.rmtree(run)
    assert locate(run.name[:8]) == kept


def test_trials_of_a_function_are_listed_with_the_labels_of_the_plan(done: Lab) -> None:
    """A function of the user's writes a result and no more."""
    for entry in done.folder.plan():
        done.folder.trial(entry.hash).environment.unlink(missing_ok=True)
    listed = {row["trial"]: (row["variant"], row["size"], row["seed"]) for row in table(find())}
    assert listed == {e.hash: (e.variant, e.size, e.seed) for e in done.folder.plan()}


def test_runs_of_an_earlier_plan_are_listed_as_stale_and_mixed_with_nothing(
    done: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of four trials are edited out; put back, they are results again."""
    stale = {entry.hash for entry in done.folder.plan() if entry.params["optim.lr"] == 0.01}
    done.run(done.sweep(space=SPACE | {"optim.lr": [0.001]}))
    assert {run.path.name for run in done.folder.stale()} == stale
    capsys.readouterr()
    assert attnres(monkeypatch, "sweep", "status", "s") == 0
    out = capsys.readouterr().out
    assert "2/2 done" in out
    assert "2 stale, no part of the plan" in out
    assert {line.split()[0] for line in out.splitlines() if "finished: stale" in line} == stale
    assert attnres(monkeypatch, "sweep", "status", "s", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["stale"]) == stale
    assert attnres(monkeypatch, "runs", "list") == 0
    out = capsys.readouterr().out
    assert {line.split()[0][-12:] for line in out.splitlines() if ": stale" in line} == stale
    assert {r["trial"] for r in select(table(find()), ["stale=true"])} == stale
    assert attnres(monkeypatch, "runs", "list", "--filter", "variant=none") == 0
    assert capsys.readouterr().out == "none of the 4 runs is variant=none\n"
    assert not stale & set(load_runs(done.folder.path.parents[1])["trial"])
    done.run(done.sweep(space=SPACE))
    assert select(table(find()), ["stale=true"]) == []
    assert done.folder.stale() == []


def test_a_comparison_opens_with_the_differences(
    done: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (entry.hash for entry in done.folder.plan()[:2])
    assert attnres(monkeypatch, "runs", "compare", a[:10], b[:10]) == 0
    out = capsys.readouterr().out
    assert out.index("optim.lr") < out.index("val/loss")
    assert "model.dim" not in out


def test_sweeps_go_by_their_names_from_anywhere_and_are_removed(
    done: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = done.folder.path.name
    assert attnres(monkeypatch, "sweep", "list") == 0
    assert f"{name}" in (out := capsys.readouterr().out)
    assert "4/4 done" in out
    assert attnres(monkeypatch, "sweep", "status", name) == 0
    assert "4/4 done" in capsys.readouterr().out
    assert attnres(monkeypatch, "track", "rebuild") == 0
    assert attnres(monkeypatch, "sweep", "rm", "nmae") == 2
    assert "nmae: no such sweep" in capsys.readouterr().err
    assert attnres(monkeypatch, "sweep", "rm", name, "--yes") == 0
    assert "5 runs deleted in the store" in capsys.readouterr().out
    assert not done.folder.path.exists()
    assert attnres(monkeypatch, "sweep", "list") == 0
    assert "no sweep yet" in capsys.readouterr().out


def test_keys_and_workers_of_a_sweep_are_set_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = lab_here(tmp_path, monkeypatch)
    path = str(lab.sweep(space={"seed": [0]}))
    assert attnres(monkeypatch, "sweep", "run", path, "optim.lr=0.5", "--workers", "2") == 0
    assert Plan(load_spec(path)).known()[0].entry.hash != (ran := lab.folder.plan()[0].hash)
    asked = content_hash(load(lab.path / "base.yaml", {"optim.lr": 0.5, "seed": 0}))
    assert content_hash(load(lab.folder.trial(ran).config)) == asked
    assert attnres(monkeypatch, "sweep", "run", path, "optim.lrr=0.5") == 2
