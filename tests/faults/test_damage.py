"""Every file of a run, damaged in six ways: no traceback, and the run's numbers come back as they
were, or the file is named in one line.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import write_run

from attnres_lab.config import load
from attnres_lab.errors import UserError
from attnres_lab.runs.files import read_json
from attnres_lab.runs.folder import RunFolder
from attnres_lab.runs.table import find, planned, table
from attnres_lab.training.run import run
from tests.faults.test_run_faults import TINY
from tests.sweep.conftest import Lab, lab, study_states

__all__ = ["lab"]


def flip(data: bytes) -> bytes:
    """The lowest bit of a byte in the middle."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


WAYS: dict[str, Callable[[bytes], bytes | None]] = {
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "gone": lambda data: None,
    "garbage": lambda data: b"\xff\x00{[" * 9,
    "another type": lambda data: b"[1, 2]\n",
    "a bit": flip,
}
FILES = [
    "config.yaml",
    "environment.json",
    "status.json",
    "result.json",
    "metrics.jsonl",
    "checkpoints/last.ckpt",
    "artifacts/data.json",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """The run's YAML, its folder, and its loss."""
    folder = tmp_path_factory.mktemp("damage")
    config = write_run(folder / "tiny.yaml", **TINY)
    loss = run(load(config), folder / "runs" / "train" / "whole").metrics["val/loss"]
    return config, folder / "runs" / "train" / "whole", loss


def outcome(whole: tuple[Path, Path, float], folder: Path) -> str | float:
    """The loss that the run has after a look at it and a new start, or the line it ends with."""
    try:
        assert len(table(find(folder.parent))) == 1
        found = run(load(whole[0]), folder).metrics["val/loss"]
    except UserError as error:
        return str(error)
    assert (read_json(RunFolder(folder).result) or {})["val/loss"] == found
    return float(found)


def damage(file: Path, way: str) -> None:
    damaged = WAYS[way](file.read_bytes())
    file.unlink()
    if damaged is not None:
        file.write_bytes(damaged)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_run_is_mended_or_named(
    name: str,
    way: str,
    whole: tuple[Path, Path, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    folder = tmp_path / "train" / "run"
    shutil.copytree(whole[1], folder)
    if name.endswith(".ckpt"):  # which a run that is done does not read
        RunFolder(folder).set_status("running")
    damage(folder / name, way)
    found = outcome(whole, folder)
    if isinstance(found, str):
        assert "\n" not in found
        assert Path(name).name in found or folder.name in found
    else:
        assert found == whole[2]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["*.train.bin", "*.val.bin", "manifest.json"])
def test_a_damaged_file_of_a_corpus_is_named_and_never_read(
    name: str, way: str, whole: tuple[Path, Path, float], tmp_path: Path
) -> None:
    """Without its manifest it is prepared again, to the same loss."""
    shutil.copytree(whole[0].parent / "cache", tmp_path / "cache")
    config = load(whole[0], {"data.cache_dir": str(tmp_path / "cache")})
    (file,) = (tmp_path / "cache").rglob(name)
    damage(file, way)
    if (name, way) == ("manifest.json", "gone"):
        assert run(config, tmp_path / "run").metrics["val/loss"] == whole[2]
        return
    with pytest.raises(UserError) as caught:
        run(config, tmp_path / "run")
    said = str(caught.value)
    assert "\n" not in said
    assert "corpus is corrupt" in said
    assert file.name in said
    assert "attnres data prepare CONFIG --force" in said


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["sweep.json", "plan.json", "study.journal"])
def test_a_damaged_file_of_a_sweep_costs_no_trial(
    name: str, way: str, lab: Lab, capfd: pytest.CaptureFixture[str]
) -> None:
    """The next start sees the trials' folders, and looks at the sweep before it as well."""
    path = lab.sweep()
    assert lab.run(path).exit_code == 0
    states, losses = lab.states(), numbers(lab)
    made = [lab.folder.trial(hash).result.stat().st_mtime_ns for hash in states]
    damage(lab.folder.path / name, way)
    records = planned(lab.folder)
    assert lab.run(path).exit_code == 0
    assert lab.states() == states
    assert numbers(lab) == losses
    assert {r["trial"] for r in records} <= set(states)
    # nothing ran again
    assert made == [lab.folder.trial(hash).result.stat().st_mtime_ns for hash in states]
    assert study_states(lab) == ["COMPLETE"] * 2
    assert "Traceback" not in "".join(capfd.readouterr())


def numbers(lab: Lab) -> dict[str, object]:
    return {r["trial"]: r.get("val/loss") for r in planned(lab.folder)}


@pytest.mark.parametrize(
    "name", ["result.json", "status.json", "environment.json", "metrics.jsonl"]
)
def test_another_digit_is_never_taken_in_silence(
    name: str,
    whole: tuple[Path, Path, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The file stays well-formed, so that its checksum alone can tell."""
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    folder = tmp_path / "train" / "run"
    shutil.copytree(whole[1], folder)
    text = (folder / name).read_text()
    at = next(i for i in range(len(text) // 2, len(text)) if text[i] in "2345678")
    (folder / name).write_text(text[:at] + str(int(text[at]) + 1) + text[at + 1 :])
    (record,) = table([folder])
    list(RunFolder(folder).rows())
    assert f"{folder / name}: damaged" in capfd.readouterr().err
    assert record.get("val/loss") in (None, whole[2])
    assert run(load(whole[0]), folder).metrics["val/loss"] == whole[2]
