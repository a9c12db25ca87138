"""Callbacks and loggers that a config names, and those that a caller gives: Lightning's stock ones
and a package's own.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from helpers import tiny, write_run
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import CSVLogger

from attnres_lab import run
from attnres_lab.config import content_hash, load, to_yaml
from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.planview import print_plan
from attnres_lab.sweep.spec import load_spec
from attnres_lab.training.plugged import check_plugged
from tests.sweep.conftest import Lab
from tests.test_cli import attnres

HERE = "tests.test_plugged"
EMA = {"name": "pytorch_lightning.callbacks.EMAWeightAveraging", "decay": 0.5}
STOP = {
    "name": "pytorch_lightning.callbacks.EarlyStopping",
    "monitor": "val/loss",
    "min_delta": 100.0,
    "patience": 1,
}
CSV = "pytorch_lightning.loggers.CSVLogger"


class Patient(EarlyStopping):
    """Hands what it is given on."""

    def __init__(self, factor: int = 2, **kwargs: Any) -> None:
        super().__init__("val/loss", mode="min", **kwargs)


class Bare(pl.Callback):
    """Its base takes nothing."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Keeps(EarlyStopping):
    """Takes anything."""

    def __init__(self, **kwargs: Any) -> None:
        self.options = kwargs
        super().__init__("val/loss")


class Counter(pl.Callback):
    """Counts the batches it saw, over interruptions too, in a file."""

    def __init__(self, file: str, every: int = 1) -> None:
        self.file, self.every, self.seen = file, every, 0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self.seen += 1
        Path(self.file).write_text(f"{self.seen} of {trainer.global_step}, every {self.every}")

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


def test_a_callback_named_in_the_config_sees_every_step_and_is_resumed(tmp_path: Path) -> None:
    file, folder = tmp_path / "seen.txt", tmp_path / "run"
    named = {"name": f"{HERE}.Counter", "file": str(file), "every": 3}
    config = tiny(tmp_path, callbacks=[named], **{"train.log_every": 1})

    class Interrupts(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.global_step == 4:
                RunFolder(folder).stop.write_text("stop")

    assert run(config, folder, callbacks=[Interrupts()]).status.state == "stopped"
    done = int(file.read_text().split()[0])
    assert done < 12
    RunFolder(folder).stop.unlink()
    assert load(RunFolder(folder).config) == config  # as the next process reads it
    assert run(load(RunFolder(folder).config), folder).status.state == "finished"
    assert file.read_text() == "12 of 12, every 3"


def test_stock_callbacks_of_lightnings_change_what_they_change(tmp_path: Path) -> None:
    """Averaged weights validate otherwise; early stopping ends a run before its budget."""
    plain = run(tiny(tmp_path), tmp_path / "plain")
    averaged = run(tiny(tmp_path, callbacks=[EMA]), tmp_path / "averaged")
    assert averaged.metrics["step"] == plain.metrics["step"] == 12
    assert averaged.metrics["train/loss"] == plain.metrics["train/loss"]
    assert averaged.metrics["val/loss"] != plain.metrics["val/loss"]
    early = run(tiny(tmp_path, callbacks=[STOP], **{"train.val_every": 2}), tmp_path / "early")
    assert (early.status.state, early.metrics["step"]) == ("finished", 4)
    saved = torch.load(RunFolder(tmp_path / "early").checkpoint, weights_only=True)
    assert saved["run"]["step"] == 4  # what is evaluated is what the result is of


def test_callbacks_are_identity_only_where_they_are_set_and_loggers_never(tmp_path: Path) -> None:
    plain, named = tiny(tmp_path), tiny(tmp_path, callbacks=[EMA])
    assert content_hash(tiny(tmp_path, callbacks=[])) == content_hash(plain)
    assert content_hash(named) != content_hash(plain)
    assert content_hash(tiny(tmp_path, callbacks=[{**EMA, "decay": 0.9}])) != content_hash(named)
    assert content_hash(tiny(tmp_path, loggers=[CSV])) == content_hash(plain)
    assert tiny(tmp_path, callbacks=EMA["name"]).callbacks == (EMA["name"],)  # one is a list of one
    (tmp_path / "again.yaml").write_text(to_yaml(named))
    assert load(tmp_path / "again.yaml") == named


def test_loggers_of_lightnings_write_beside_the_run_folder_s_own_rows(tmp_path: Path) -> None:
    other = CSVLogger(tmp_path / "other")
    config = tiny(tmp_path, loggers=[CSV, {"name": CSV, "save_dir": str(tmp_path / "there")}])
    result = run(config, tmp_path / "run", logger=other)
    for place in (tmp_path / "run" / "loggers", tmp_path / "there", tmp_path / "other"):
        (file,) = place.rglob("metrics.csv")
        rows = [r["val/loss"] for r in csv.DictReader(file.read_text().splitlines())]
        (loss,) = filter(None, rows)
        assert float(loss) == pytest.approx(result.metrics["val/loss"])
    rows = [row for row in RunFolder(tmp_path / "run").rows() if "val/loss" in row]
    assert [row["val/loss"] for row in rows] == [result.metrics["val/loss"]]


WRONG = [
    ("callbacks", "nowhere.Thing", "callbacks: nowhere.Thing: ModuleNotFoundError: No module"),
    ("callbacks", "Thing", "'Thing' is no dotted name; write package.module.Class"),
    ("callbacks", "pytorch_lightning.callbacks.Nope", "AttributeError: module"),
    ("callbacks", "pathlib.Path", "pathlib.Path: is no subclass of pytorch_lightning.callbacks"),
    ("callbacks", {**STOP, "patienc": 1}, "got an unexpected keyword argument 'patienc'; write {"),
    ("callbacks", f"{HERE}.Counter", "missing a required argument: 'file'"),
    ("callbacks", {"name": f"{HERE}.Patient", "patienc": 1}, "unexpected keyword argument 'patien"),
    ("callbacks", {"name": f"{HERE}.Patient", "mode": "max"}, "'mode' is no argument: the class"),
    ("callbacks", {"name": f"{HERE}.Bare", "patience": 1}, "unexpected keyword argument 'patience"),
    ("callbacks", {"decay": 1}, "no name; write {name: package.Class, ...}"),
    ("loggers", EMA["name"], "is no subclass of pytorch_lightning.loggers.logger.Logger"),
]


@pytest.mark.parametrize(("key", "item", "message"), WRONG, ids=[m for _, _, m in WRONG])
def test_what_cannot_be_had_is_refused_in_plan_in_one_line(
    key: str, item: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path)
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path / "runs"))
    source = load_spec(lab.sweep(function="attnres_lab.training.run:run", overrides={key: [item]}))
    with pytest.raises(UserError) as caught:
        print_plan(source, lab.folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_takes_its_arguments_is_not_refused(tmp_path: Path) -> None:
    """Handed on, kept, or taken by a logger for the writer below it."""
    check_plugged(
        [
            tiny(
                tmp_path,
                callbacks=[
                    {"name": f"{HERE}.Patient", "factor": 3, "patience": 1},
                    {"name": f"{HERE}.Keeps", "anything": 1},
                    f"{HERE}.Bare",
                    STOP,
                ],
                loggers=[{"name": "pytorch_lightning.loggers.WandbLogger", "group": "g"}, CSV],
            )
        ]
    )


def test_train_refuses_it_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path / "runs"))
    path = write_run(tmp_path / "mine.yaml")
    assert attnres(monkeypatch, "train", str(path), "callbacks=nowhere.Thing") == 2
    assert "importable from where attnres runs" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_sweep_over_callbacks(tmp_path: Path) -> None:
    """They are an axis like any other key."""
    lab = Lab(tmp_path)
    space = {"arm": {"plain": {"seed": 0}, "averaged": {"seed": 0, "callbacks": [EMA]}}}
    plan = Plan(load_spec(lab.sweep(space=space))).known()
    assert [t.config.callbacks for t in plan] == [(), (EMA,)]
    assert yaml.safe_load(to_yaml(plan[1].config))["callbacks"] == [EMA]
