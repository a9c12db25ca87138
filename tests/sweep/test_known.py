"""A study goes on from a table of its finished trials, in a folder that never saw them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import corpus_folder

from analysis import load_runs
from attnres_lab.errors import UserError
from attnres_lab.runs.files import checked
from attnres_lab.runs.folder import read_json, write_json
from attnres_lab.sweep.known import SUBLAYER, bring, check_data, export
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.planview import print_plan
from attnres_lab.sweep.report import print_status
from attnres_lab.sweep.spec import load_spec
from tests.sweep.conftest import Lab
from tests.sweep.test_tuning import outcome, report_of, tuned

TABLE = "runs.csv"
STARTED = {"function": "tests.sweep.test_tuning:slow_bowl"}


def elsewhere(lab: Lab, monkeypatch: pytest.MonkeyPatch, name: str = "clone") -> Lab:
    """Another checkout, with runs of its own."""
    monkeypatch.setenv("ATTNRES_RUNS", str(lab.path / name / "runs"))
    return Lab(lab.path / name)


def exported(lab: Lab, to: Lab) -> Path:
    (written,) = export(lab.folder, to.path / TABLE)
    return written


def ran(lab: Lab) -> int:
    return len(list(lab.folder.path.glob("started-*")))


@pytest.mark.parametrize("trials", [5, 20, 100])
def test_half_a_study_goes_on_from_its_table_and_ends_as_if_undisturbed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, trials: int
) -> None:
    lab.run(tuned(lab, stop={"trials": trials}, **STARTED))
    first, clone = ran(lab), elsewhere(lab, monkeypatch)
    exported(lab, clone)
    assert clone.run(tuned(clone, known=TABLE, **STARTED)).exit_code == 0
    second = outcome(clone)
    calm = elsewhere(lab, monkeypatch, "undisturbed")
    assert calm.run(tuned(calm, **STARTED)).exit_code == 0
    plan, results, report = outcome(calm)
    assert second[:2] == (plan, results), "the same trials, rates and losses"
    said = [line for line in second[2].splitlines() if f"taken from {TABLE}" in line]
    assert len(said) == 1
    rest = [line for line in second[2].splitlines() if line not in said]
    assert without_places(rest) == without_places(report.splitlines())
    assert first + ran(clone) == ran(calm) == len(plan), "nothing ran twice"


def without_places(lines: list[str]) -> list[str]:
    """The YAML at the end of a report names the table; a list of one warning stands or falls."""
    return [
        line
        for line in lines
        if line.strip() and not line.startswith(("known:", "## Warnings", "- none", "None"))
    ]


def test_what_comes_from_a_table_is_marked_everywhere(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.run(tuned(lab))
    clone = elsewhere(lab, monkeypatch)
    exported(lab, clone)
    path, count = tuned(clone, known=[TABLE]), len(lab.folder.plan())
    capsys.readouterr()
    print_plan(load_spec(path), clone.folder)
    plan = capsys.readouterr().out
    assert f"0 new, 0 pending, {count} done ({count} imported)" in plan
    assert "nothing to do" in plan
    assert len(re.findall(r" imported +size=", plan)) == count
    print_status(clone.folder, as_json=False, watch=False)
    status = capsys.readouterr().out
    assert f"{count}/{count} done ({count} imported)" in status
    assert status.count("finished: imported") == count
    print_status(clone.folder, as_json=True, watch=False)
    facts = json.loads(capsys.readouterr().out)
    assert facts["imported"] == facts["finished"] == count
    assert {t["status"]["message"] for t in facts["trials"]} == {f"imported from {TABLE}"}
    runs = load_runs("s")
    assert set(runs["imported"]) == {TABLE}
    assert f"12 runs of 12 taken from {TABLE}, not made here" in report_of(clone)
    assert clone.run(path).done == count
    again, *_ = export(clone.folder, clone.path / "out")
    assert again.read_text() == (clone.path / TABLE).read_text(), "a table of a table is the same"


def test_another_config_is_another_trial_and_runs(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(lab.sweep())
    clone = elsewhere(lab, monkeypatch)
    exported(lab, clone)
    path = clone.sweep(known=TABLE, space={"optim.lr": [1e-3, 2e-3], "seed": [0, 1]})
    assert clone.run(path).done == 4
    imported = {e.params["optim.lr"] for e in clone.folder.plan() if kept(clone, e.hash)}
    assert imported == {1e-3}
    changed = clone.sweep(known=TABLE, overrides={"model.dim": 16})
    assert clone.run(changed).done == 4
    assert not any(kept(clone, entry.hash) for entry in clone.folder.plan())


def kept(lab: Lab, hash: str) -> str:
    return lab.folder.trial(hash).status().imported


def test_a_trial_that_is_here_is_left_alone_and_one_without_a_result_runs(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = {"function": "tests.sweep.synthetic:fails", "space": {"seed": [0, 1, 5]}}
    lab.run(lab.sweep(**fails))
    assert sorted(lab.states().values()) == ["diverged", "failed", "finished"]
    clone = elsewhere(lab, monkeypatch)
    exported(lab, clone)
    here = next(hash for hash, state in lab.states().items() if state == "finished")
    clone.folder.trial(here).path.mkdir(parents=True)
    clone.folder.trial(here).set_status("finished", message="mine")
    assert bring(load_spec(clone.sweep(known=TABLE, **fails)), clone.folder) == 1
    assert clone.folder.trial(here).status().message == "mine"
    (other,) = (hash for hash, state in lab.states().items() if state == "diverged")
    assert clone.folder.trial(other).status().state == "diverged"
    assert not clone.folder.trial(other).result.exists()


def cut(text: str) -> str:
    return text[: text.rindex("finished") + 3]


def other_loss(text: str) -> str:
    return re.sub(r",1\.\d+,", ",1.5,", text, count=1)


def other_code(text: str) -> str:
    """As code would write it whose hashes are others."""
    return rewritten(text, lambda row: row | {"trial": "0123456789ab"})


def later_code(text: str) -> str:
    """As code would write it that has keys which this one does not know."""
    return rewritten(text, lambda row: row | {"optim.later": "1"})


def rewritten(text: str, change: Callable[[dict[str, str]], dict[str, str]]) -> str:
    rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(text.splitlines())]
    rows = [change({k: v for k, v in row.items() if k != "sha256"}) for row in rows]
    whole = [checked(row) for row in rows]
    header = dict.fromkeys(key for row in whole for key in row)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(header))
    writer.writeheader()
    writer.writerows(whole)
    return file.getvalue()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (cut, ", line 5: damaged: the row is not what was written"),
        (other_loss, ", line 2: damaged: the row is not what was written"),
        (other_code, ", line 2: 0123456789ab: the hash of its config is [0-9a-f]{12} here; the "),
        (later_code, ": optim.later: unknown key.*; the table is of another version of the code"),
        (lambda text: "a,b\n1,2\n", ": no column trial: this is no table of trials"),
        (lambda text: "\0" + text, ": no column (trial|status)|damaged"),
    ],
)
def test_a_damaged_table_and_one_of_other_code_are_refused_in_a_line(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, damage: Callable[[str], str], line: str
) -> None:
    lab.run(lab.sweep())
    clone = elsewhere(lab, monkeypatch)
    table = exported(lab, clone)
    assert damage(table.read_text()) != table.read_text()
    table.write_text(damage(table.read_text()))
    with pytest.raises(UserError, match=line) as refused:
        clone.run(clone.sweep(known=TABLE))
    assert str(refused.value).startswith(f"{clone.path}/sweep.yaml:")
    assert "\n" not in str(refused.value)


def test_a_table_that_is_not_there_is_named(lab: Lab) -> None:
    with pytest.raises(UserError, match=r"sweep.yaml:\d+: known: gone.csv: No such file"):
        lab.run(lab.sweep(known="gone.csv"))


def test_a_table_by_another_hand_has_no_checksums_and_is_held_to_its_hashes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(lab.sweep())
    clone = elsewhere(lab, monkeypatch)
    table = exported(lab, clone)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    with table.open("w") as file:
        writer = csv.DictWriter(file, [key for key in rows[0] if key != "sha256"])
        writer.writeheader()
        writer.writerows({k: v for k, v in row.items() if k != "sha256"} for row in rows)
    assert bring(load_spec(clone.sweep(known=TABLE)), clone.folder) == 4


@pytest.mark.slow
def test_trained_trials_come_with_their_environment_and_are_held_to_their_data(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ATTNRES_CACHE", str(tmp_path / "cache"))
    paths = [str(corpus_folder(tmp_path / "corpus", 60) / "*.txt")]
    space = {"model.residual": ["baseline", {"name": "full", "heads": 2}]}
    source = {"data.source": {"name": "files", "paths": paths}}
    real = {
        "space": space,
        "overrides": {**source, "data.val_fraction": 0.3},
        "function": "attnres_lab.training.run:run",
    }
    lab.run(lab.sweep(**real))
    assert set(lab.states().values()) == {"finished"}
    clone = elsewhere(lab, monkeypatch)
    exported(lab, clone)
    path = clone.sweep(known=TABLE, **real)
    assert clone.run(path).done == 2
    for entry in lab.folder.plan():
        here, there = lab.folder.trial(entry.hash), clone.folder.trial(entry.hash)
        result = read_json(here.result) or {}
        assert any(SUBLAYER.fullmatch(key) for key in result), "the depth records have these"
        assert read_json(there.result) == {
            k: v for k, v in result.items() if not SUBLAYER.fullmatch(k)
        }
        kept, told = read_json(here.environment) or {}, read_json(there.environment) or {}
        assert {k: told.get(k) for k in kept} == kept
    spec = load_spec(path)
    config = next(iter(Plan(spec).known())).config
    check_data(spec, clone.folder, config)
    run = clone.folder.trial(entry.hash)
    other: dict[str, Any] = {**(read_json(run.environment) or {}), "data_fingerprint": "other"}
    write_json(run.environment, other)
    with pytest.raises(UserError, match=f"{entry.hash} was trained on the data other, here"):
        check_data(spec, clone.folder, config)
    check_data(replace(spec, spec=replace(spec.spec, known=None)), clone.folder, config)
