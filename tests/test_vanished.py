"""A run's folder that is moved, deleted, replaced or unmounted while it is in use, or can no longer
be written: one line, nothing starts in its place, and what was moved back goes on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from helpers import tiny, write_run
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.errors import UserError
from attnres_lab.evaluation.record import Answers
from attnres_lab.runs.folder import RunFolder, read_json, write_json
from attnres_lab.training.checkpoint import AtomicCheckpoint
from attnres_lab.training.run import run

ROOT = Path(__file__).parents[1]
LINE = "was moved, deleted or unmounted while it was in use"


class At(pl.Callback):
    """Does something before the step after ``step``."""

    def __init__(self, step: int, do: Callable[[], object]) -> None:
        self.step, self.do = step, do

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int
    ) -> None:
        if module.step == self.step:
            self.do()


def replace(folder: Path) -> None:
    folder.rename(folder.with_name("aside"))
    folder.mkdir()


HOW: dict[str, Callable[[Path], object]] = {
    "moved": lambda folder: folder.rename(folder.with_name("aside")),
    "deleted": shutil.rmtree,
    "replaced": replace,
}


@pytest.mark.parametrize("next_write", ["checkpoint", "row", "record"])
@pytest.mark.parametrize("how", HOW)
def test_training_ends_with_a_line(tmp_path: Path, how: str, next_write: str) -> None:
    """Whatever it would have written next."""
    every = {
        "train.checkpoint_every": 1 if next_write == "checkpoint" else 3,
        "train.log_every": 1 if next_write == "row" else 12,
        "train.probe_every": 1 if next_write == "record" else 0,
    }
    config, folder = tiny(tmp_path, **every), tmp_path / "runs" / "one"
    calm = run(config, tmp_path / "calm").metrics
    with pytest.raises(UserError, match=LINE) as caught:
        run(config, folder, callbacks=[At(4, lambda: HOW[how](folder))])
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (list(folder.iterdir()) == []) if how == "replaced" else not folder.exists()
    if how == "replaced":
        folder.rmdir()
    if how != "deleted":
        (tmp_path / "runs" / "aside").rename(folder)
    after = run(config, folder).metrics
    assert after["val/loss"] == calm["val/loss"]
    rows, whole = (
        [(row["step"], row.get("train/loss")) for row in RunFolder(f).rows()]
        for f in (folder, tmp_path / "calm")
    )
    assert rows == whole


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_unmounted_ends_with_a_line(tmp_path: Path) -> None:
    """And the empty folder under it stays empty."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    gone: list[int] = []

    def unmount() -> None:
        gone.append(1)
        subprocess.run(["umount", "-l", str(disk)], check=True)

    try:
        with pytest.raises(UserError, match=LINE):
            run(tiny(tmp_path), disk / "run", callbacks=[At(6, unmount)])
        assert list(disk.iterdir()) == []
    finally:
        if not gone:
            subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("write", ["status", "row", "artifact", "result", "checkpoint"])
def test_nothing_starts_in_its_place_between_a_check_and_a_write(
    tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is moved when it has just been seen in its place."""
    files = RunFolder(tmp_path / "one")
    files.path.mkdir()
    files.hold()
    check = files.still_there

    def then_moved() -> None:
        check()
        files.path.rename(tmp_path / "aside")

    monkeypatch.setattr(files, "still_there", then_moved)

    def after_a_check(do: Callable[[], object]) -> None:
        files.still_there()
        do()

    writes: dict[str, Callable[[], object]] = {
        "status": lambda: files.set_status("running"),
        "row": lambda: files.append_metrics({"step": 1, "time": 0.0}),
        "artifact": lambda: after_a_check(lambda: files.new_artifact("depth", "step.json")),
        "result": lambda: after_a_check(lambda: write_json(files.result, {})),
        "checkpoint": lambda: after_a_check(
            lambda: AtomicCheckpoint(files.checkpoint).save_checkpoint({}, files.checkpoint)
        ),
    }
    with pytest.raises(OSError, match="No such file"):
        writes[write]()
    assert not files.path.exists()


@pytest.mark.parametrize("how", HOW)
def test_an_evaluation_ends_with_a_line(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "runs" / "train" / "one"
    run(tiny(tmp_path), folder)

    def vanish(*_: object) -> list[Answers]:
        HOW[how](folder)
        return [Answers.mean("eval/nano/acc", ["a", "b"], [0.0, 1.0])]

    monkeypatch.setattr("attnres_lab.evaluation.run._answers", vanish)
    result = CliRunner().invoke(app, ["eval", str(folder), "--tasks", "nano"])
    assert isinstance(result.exception, UserError)
    assert LINE in str(result.exception)
    assert not folder.exists() or list(folder.iterdir()) == []


def test_an_evaluation_on_a_full_disk_ends_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves the result as it was."""
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path / "runs"))
    files = RunFolder(tmp_path / "runs" / "train" / "one")
    run(tiny(tmp_path), files.path)
    before = read_json(files.result)
    scores = [Answers.mean("eval/nano/acc", ["a", "b"], [0.0, 1.0])]
    monkeypatch.setattr("attnres_lab.evaluation.run._answers", lambda *_: scores)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = CliRunner().invoke(app, ["eval", str(files.path), "--tasks", "nano"])
    assert isinstance(result.exception, UserError)
    assert "No space left on device" in str(result.exception)
    assert read_json(files.result) == before


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_the_command_ends_with_a_line_and_goes_on_once_the_folder_is_back(
    tmp_path: Path, devices: int
) -> None:
    """With its mirror; on two devices the ranks end too."""
    changes = {"budget": "4000 steps", "train.devices": devices, "train.checkpoint_every": 20}
    config = write_run(tmp_path / "tiny.yaml", **changes)
    command = [sys.executable, "-m", "attnres_lab", "train", str(config)]
    environment = os.environ | {"ATTNRES_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as first:
        deadline = time.monotonic() + 240
        while not (found := list((tmp_path / "runs").glob("train/*/checkpoints/last.ckpt"))):
            assert time.monotonic() < deadline
            assert first.poll() is None, first.communicate()
            time.sleep(0.1)
        folder = found[0].parents[1]
        folder.rename(tmp_path / "aside")
        said = first.communicate(timeout=240)[1]
    assert first.returncode == 2, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if LINE in line]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert not folder.exists()
    (tmp_path / "aside").rename(folder)
    (folder / "stop").touch()  # it would go on: to its next checkpoint is enough
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 130, again.stdout + again.stderr
    assert RunFolder(folder).status().state == "stopped"
