"""What a user may get wrong on the command line: one line with the place and the remedy, no
traceback, exit code 2.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis import compute_equivalent_gain
from attnres_lab.config import load
from attnres_lab.runs import Entry, SweepFolder
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.spec import load_spec
from tests.test_cli import ROOT, attnres

TINY = str(ROOT / "experiments" / "tiny.yaml")
SWEEP = f"name: s\nbase: {TINY}\nspace: {{seed: [0]}}\n"
CASES = [
    ("train {tiny} optim.lr=.nan", "", "optim.lr: should be a finite number, got nan"),
    ("train {tiny} optim.clip=inf", "", "optim.clip: should be a finite number"),
    ("train {tiny} seed=-1", "", "seed: -1 is not a whole number from 0 to 2^32 - 1"),
    ("train {tiny} budget.steps=3", "", "budget: write a value and its unit: budget: 3 steps"),
    ("train {tiny} budget=10", "", "a value and its unit are expected, for example 150 steps"),
    ("train {tiny} budget=3_epochs", "", "units: tokens, tokens_per_param, flops, steps, seconds"),
    ("train {tiny} optim.lrr=1", "", "optim.lrr: unknown key, did you mean 'lr'?"),
    ("train {tiny} model.residual=fulll", "", "unknown variant 'fulll', did you mean 'full'?"),
    (
        "train {tiny} model.residual.num_blocks=4",
        "",
        "model.residual.num_blocks: unknown key of baseline; set model.residual.name: block",
    ),
    ("train {tiny} model.num_heads=5", "", "5 heads do not divide model.dim = 32"),
    ("train {tiny} train.devices=999 train.batch_size=999", "", "train.devices: 999, but this"),
    ("train {tiny} optim.lr", "", "overrides are written key=value"),
    ("train {tiny} optim.name=sgd", "", "optim.name: should be 'adamw' or 'muon', got 'sgd'"),
    ("train nothing", "", "nothing: no such file, and no experiment is called so"),
    ("train {file}", SWEEP, "this is a sweep file; use attnres sweep run"),
    ("sweep plan {tiny}", "", "this is a run file; use attnres train"),
    ("sweep plan {file}", SWEEP + "function: nowhere.at:all\n", "No module named 'nowhere'"),
    ("sweep plan {file}", SWEEP + "function: pathlib:Nothing\n", "it must be importable"),
    ("sweep plan {file}", SWEEP + "function: pathlib\n", "is not written module:function"),
    ("sweep plan {file}", SWEEP + "launcher: {name: slrm}\n", "did you mean 'slurm'?"),
    ("sweep plan {file}", SWEEP + "launcher: {workers: 1000}\n", "1000 trials at a time on"),
    ("sweep run {file} --workers 1000", SWEEP, "give at most"),
    ("sweep plan {file}", SWEEP + "launcher: {wrokers: 2}\n", "did you mean 'workers'?"),
    ("sweep plan {file}", SWEEP + "storage: nonsense\n", "storage: nonsense: no address; as"),
    ("sweep plan {file}", SWEEP + "stop: {flops: .inf}\n", "stop.flops: should be a finite number"),
    ("sweep plan {file}", SWEEP.replace("s\n", "my sweep\n", 1), "'my sweep' is no name: letters"),
    ("sweep plan {file}", SWEEP + "objective: {metric: val/los}\n", "did you mean 'val/loss'?"),
    ("sweep plan {file}", SWEEP + "trials: 3\n", "a grid has its own number of trials"),
    ("sweep plan {file}", SWEEP.replace("seed: [0]", "optim.lrr: [1]"), "did you mean 'lr'?"),
    ("sweep plan {file}", SWEEP.replace("seed: [0]", "optim.lr: []"), "an empty list"),
    ("sweep plan {file}", SWEEP.replace("tiny.yaml", "gone.yaml"), "gone.yaml"),
    ("sweep plan {file}", "name: s\nname: t\n", "'name' is given twice (first on line 1)"),
    ("sweep plan {file}", "name: [\n", "check the indentation"),
    ("sweep plan scaling", "", "a study at several scales; give --scale nano|small|lab|paper"),
    ("sweep plan scaling --scale huge", "", "no scale 'huge'; give --scale nano|small|lab|paper"),
    ("sweep status nothing", "", "no sweep is called so"),
    ("sweep status {file}", SWEEP, "nothing has run yet; start it with: attnres sweep run"),
    ("sweep export {file}", SWEEP, "nothing has run yet; start it with: attnres sweep run"),
    ("sweep logs abc", "", "0 trials begin so; see attnres sweep status"),
    ("report {file}", SWEEP, "nothing has run yet; start it with: attnres sweep run"),
    ("runs list", "", "no runs here; train or sweep first"),
    ("runs compare a b", "", "no runs here; train or sweep first"),
    ("runs export x.csv", "", "no runs here; train or sweep first"),
    ("track rebuild", "", "no runs here; train or sweep first"),
    ("init {folder}", "", "exists; init overwrites nothing"),
    ("sweep plan {file}", SWEEP.replace("seed: [0]", "optim.lr: [.nan]"), "a finite number, got"),
    ("sweep plan {file}", SWEEP.replace("seed: [0]", "seed: [-1]"), "whole numbers from 0 on"),
    (
        "sweep plan {file}",
        SWEEP + "overrides: {callbacks: [nowhere.Thing]}\n",
        "nowhere.Thing: M",
    ),
    ("sweep run {file}", SWEEP + "storage: sqlite:////nowhere/at.db\n", "no study can be opened"),
    ("train {tiny} loggers=pathlib.Path", "", "is no subclass of pytorch_lightning.loggers"),
    ("runs export runs.txt", "", "no runs here; train or sweep first"),
    ("bench sweep nothing", "", "no sweep is called so"),
    ("bench sweep {file}", SWEEP, "no finished trial of training to time"),
    ("sweep run {file} seed=3", SWEEP, "seed: set by {file}:3: space.seed, trial by trial; change"),
    (
        "sweep run {file} budget=3_steps",
        SWEEP.replace("seed: [0]", "size: {s: {model.dim: 8, budget: 9 steps}}"),
        "budget: set by {file}:3: space.size, trial by trial; change it there",
    ),
    (
        "sweep run {file} model.residual.num_blocks=4",
        SWEEP.replace("seed: [0]", "model.residual: [block, full]"),
        "space.model.residual, trial by trial; change it there",
    ),
    ("train {tiny} data.source.name=files", "", "data.source.paths: missing; data.source.name: f"),
    ("train {tiny} data.source.paths=[a]", "", "paths: is read by data.source.name: files only; "),
    ("train {tiny} data.source.dataset=a", "", "is read by data.source.name: huggingface only; "),
    ("report {folder}", "", "a folder, not a file, and no sweep is called so"),
    ("sweep rm nothing --yes", "", "nothing: no such sweep in {folder}/runs\n"),
    (
        "sweep plan {file}",
        SWEEP + "eval: {tasks: [nano, gsm8m]}\n",
        "{file}:4: eval.tasks: lm_eval has no task 'gsm8m', did you mean 'gsm8k'?",
    ),
    (
        "sweep plan {file}",
        SWEEP + "eval: {tasks: [paper]}\n",
        "{file}:4: eval.tasks: paper has programs run that the model wrote, which a sweep does not",
    ),
    ("sweep status {file}", SWEEP, "look from the project where it ran (or set ATTNRES_RUNS)"),
]


@pytest.mark.parametrize(("words", "file", "message"), CASES, ids=[f"{w} {m}" for w, _, m in CASES])
def test_a_mistake_is_one_line_with_its_remedy(
    words: str,
    file: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "file.yaml"
    path.write_text(file)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "quickstart.yaml").write_text("mine")
    given = words.format(tiny=TINY, file=path, folder=tmp_path).split()
    assert attnres(monkeypatch, *given) == 2
    error = capsys.readouterr().err
    assert message.replace("{file}", str(path)).replace("{folder}", str(tmp_path)) in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", ["train {tiny}", "sweep run {file}"])
def test_a_disk_that_cannot_be_written_is_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """/proc takes no folders, of root neither."""
    monkeypatch.setenv("ATTNRES_RUNS", "/proc/none")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (path := tmp_path / "file.yaml").write_text(SWEEP)
    assert attnres(monkeypatch, *words.format(tiny=TINY, file=path).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: /proc/none")
    assert error.count("\n") == 1


def test_a_report_on_a_sweep_of_which_nothing_has_finished_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planned or begun alone, it has no column of losses yet."""
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    folder = SweepFolder(tmp_path / "sweeps" / "s")
    folder.trial("a").path.mkdir(parents=True)
    folder.describe("s", TINY, SWEEP)
    folder.write_plan([Entry("a", "a", {}, "full", "d8-L2", 0, "full-d8-L2-s0", 1, 1.0, 1)])
    for state in ("scheduled", "running", "failed"):
        folder.trial("a").path.mkdir(parents=True, exist_ok=True)
        folder.trial("a").set_status(state)
        assert attnres(monkeypatch, "report", "s") == 2
        assert capsys.readouterr().err == (
            "error: s: none of its 1 runs has finished with a loss; there is nothing to report yet:"
            " attnres sweep status says how far they are, attnres sweep run goes on\n"
        )


def test_what_is_meant_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Residuals as plain strings, a path where a list is meant, and in Python too an experiment by
    its name in an empty folder.
    """
    monkeypatch.chdir(tmp_path)
    assert load("experiments/tiny.yaml") == load("tiny") == load(TINY)
    file = tmp_path / "file.yaml"
    file.write_text(SWEEP.replace("seed: [0]", "model.residual: [baseline, full]"))
    trials = Plan(load_spec(file)).known()
    assert [t.entry.variant for t in trials] == ["baseline", "full"]
    source = {"name": "files", "paths": "texts/*.txt"}
    assert load(TINY, {"data.source": source}).data.source.paths == ("texts/*.txt",)


def test_a_notebook_on_a_sweep_that_has_not_finished_says_so() -> None:
    runs = pd.DataFrame(
        {
            "variant": ["baseline", "full"],
            "size": "s",
            "seed": 0,
            "status": ["running", "scheduled"],
        }
    )
    with pytest.raises(ValueError, match=r"none of the 2 runs has a val/loss yet .* look again"):
        compute_equivalent_gain(runs, "full")


@pytest.mark.parametrize("words", ["ui --port 99999", "traim x", "sweep run", "train x --nope"])
def test_a_mistake_of_usage_names_the_option_and_the_help(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attnres(monkeypatch, *words.split()) == 2
    error = capsys.readouterr().err
    assert "-h' for help" in error
    assert "Traceback" not in error
