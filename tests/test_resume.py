"""A run goes on from wherever its folder stands, bit for bit; what was lost, damaged or left half
written is told or made again.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Crash, curve, run_in_two_parts, same, tiny, weights

from attnres_lab.config import RunConfig, to_yaml
from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder, read_json
from attnres_lab.training.checkpoint import AtomicCheckpoint, load_model
from attnres_lab.training.run import run

ROOT = Path(__file__).parent.parent


def start(config: RunConfig, folder: Path) -> "subprocess.Popen[bytes]":
    """Train in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    return subprocess.Popen(
        [sys.executable, "-m", "attnres_lab.training.run", str(folder)], cwd=ROOT
    )


def wait_for_a_row(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Until the process has trained a little further than what the folder held."""
    rows = RunFolder(folder).metrics
    size = rows.stat().st_size if rows.exists() else 0
    while process.poll() is None and (not rows.exists() or rows.stat().st_size <= size):
        time.sleep(0.02)


@pytest.mark.parametrize(
    "changes",
    [{"optim.name": "adamw"}, {"optim.name": "muon"}, {"optim.lora.rank": 4}],
    ids=["adamw", "muon", "adapters"],
)
def test_a_stopped_run_resumes_bit_for_bit_with_the_same_rows(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    if "optim.lora.rank" in changes:
        pytest.importorskip("peft")
    changes |= {"model.residual.name": "full", "train.micro_batch_size": 2}
    config = tiny(tmp_path, **changes)
    run(config, tmp_path / "whole")
    stopped, _ = run_in_two_parts(config, tmp_path / "parts")
    assert stopped.status.step == 4
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))

    def timeless(folder: Path) -> list[dict[str, float]]:
        kept = ("step", "tokens", "flops", "train/loss", "val/loss", "optim/lr", "optim/grad_norm")
        return [
            {k: v for k, v in row.items() if k in kept or k.startswith("depth/")}
            for row in RunFolder(folder).rows()
        ]

    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")


@pytest.mark.parametrize("at", [6, 9])
def test_a_run_that_goes_on_between_two_rows_writes_the_same_rows(tmp_path: Path, at: int) -> None:
    """From the checkpoint of step 5, where rows are of steps 1 to 4, 5 to 8 and 9 to 12; of a crash
    at step 9 the second is there already, and is written again.
    """
    config = tiny(tmp_path)
    run(config, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        run(config, tmp_path / "parts", callbacks=[Crash(at)])
    run(config, tmp_path / "parts")
    assert curve(tmp_path / "parts", "train/loss") == curve(tmp_path / "whole", "train/loss")


@pytest.mark.slow
def test_kill_9_at_three_random_moments_ends_in_the_same_weights(tmp_path: Path) -> None:
    config = tiny(
        tmp_path,
        **{"model.residual.name": "full", "budget": "400 steps", "train.checkpoint_every": 7},
    )
    run(config, tmp_path / "whole")
    folder = tmp_path / "killed"
    kills = 0
    for delay in (0.2, 0.9, 0.5):
        process = start(config, folder)
        wait_for_a_row(process, folder)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    assert run(config, folder).status.state == "finished"
    assert same(weights(folder), weights(tmp_path / "whole"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])  # the second through srun
def test_sigterm_writes_a_checkpoint_and_stops(tmp_path: Path, number: int) -> None:
    process = start(tiny(tmp_path, **{"budget": "100_000 steps"}), tmp_path / "run")
    files = RunFolder(tmp_path / "run")
    wait_for_a_row(process, files.path)
    process.send_signal(number)
    assert process.wait(30) == 0
    assert files.status().state == "stopped"
    assert torch.load(files.checkpoint, weights_only=True)["run"]["step"] == files.status().step > 0


def test_bad_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    run(config, tmp_path / "run")
    with pytest.raises(UserError, match="holds a run of another config"):
        run(tiny(tmp_path, **{"optim.lr": 1e-4}), tmp_path / "run")
    files = RunFolder(tmp_path / "run")
    files.set_status("stopped", step=5)
    files.checkpoint.write_bytes(files.checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="corrupt checkpoint"):
        run(config, files.path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    run(tiny(tmp_path, **{"optim.lr": 1e-4}), tmp_path / "other")
    files = RunFolder(tmp_path / "run")
    files.checkpoint.parent.mkdir(parents=True)
    files.checkpoint.write_bytes(RunFolder(tmp_path / "other").checkpoint.read_bytes())
    with pytest.raises(UserError, match="belongs to another config"):
        run(tiny(tmp_path), files.path)


def test_a_second_process_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    process = start(tiny(tmp_path, **{"budget": "100_000 steps"}), tmp_path / "run")
    wait_for_a_row(process, tmp_path / "run")
    try:
        with pytest.raises(UserError, match="another process works"):
            run(tiny(tmp_path, **{"budget": "100_000 steps"}), tmp_path / "run")
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        config = tiny(tmp_path, **{"train.checkpoint_every": 4, "budget": "40 steps"})
        files = RunFolder(disk / "run")
        files.path.mkdir()
        files.stop.write_text("stop")
        run(config, files.path)
        files.stop.unlink()
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(b"0" * (free - 40_000))
        with pytest.raises(UserError, match="what was written before is intact"):
            run(config, files.path)
        assert torch.load(files.checkpoint, weights_only=True)["run"]["step"] == 4
        (disk / "filler").unlink()
        assert run(config, files.path).status.state == "finished"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_checkpoint_that_cannot_be_written_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of the disk: torch has none of its own for it. /dev/full is always full."""
    monkeypatch.setattr(
        "attnres_lab.training.checkpoint.open",
        lambda path, mode: open("/dev/full", mode),  # noqa: SIM115
        raising=False,
    )
    path = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(OSError, match=r"not be written \(No space left on device\)") as caught:
        AtomicCheckpoint(path.parent).save_checkpoint({"a": torch.ones(99_999)}, path)
    assert caught.value.errno == errno.ENOSPC


def test_rows_are_on_the_disk_before_the_checkpoint_that_counts_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And before each status: after a power cut no history is shorter than what vouches for it."""
    rows, fsync = RunFolder(tmp_path / "run").metrics, os.fsync
    synced: list[tuple[str, int]] = []

    def spy(file: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{file}")).name
        synced.append((name, rows.stat().st_size if rows.exists() else 0))
        fsync(file)

    monkeypatch.setattr(os, "fsync", spy)
    run(tiny(tmp_path), tmp_path / "run")
    saved = [at for at, (name, _) in enumerate(synced) if name == "last.tmp"]
    assert len(saved) == 3  # at steps 5, 10 and 12
    assert all(synced[at - 1] == ("metrics.jsonl", synced[at][1]) for at in saved)


CLOCKS = ("seconds", "device_seconds", "peak_memory_bytes")


@pytest.mark.parametrize("lost", ["status", "validation", "rows"])
def test_a_result_is_made_again_from_what_is_on_the_disk(
    tmp_path: Path, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill after the last checkpoint and before the last status: nothing is trained again, and
    no number is missing; a history that is shorter than its checkpoint is named.
    """
    config, files = tiny(tmp_path), RunFolder(tmp_path / "run")
    before = run(config, files.path).metrics
    checkpoint = files.checkpoint.read_bytes()
    files.result.unlink()
    files.set_status("running", step=config.steps or 0)
    if lost != "status":
        rows = [r for r in files.rows() if lost == "validation" and "val/loss" not in r]
        files.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = run(config, files.path)
    assert after.status.state == "finished"
    assert after.metrics["val/loss"] == before["val/loss"]
    said = f"{files.metrics}: rows from step 0 to 12 are lost\n"
    assert (said in capsys.readouterr().err) == (lost == "rows")
    if lost != "rows":
        assert set(after.metrics) == set(before) == set(read_json(files.result) or {})
        for key in set(before) - set(CLOCKS):
            assert after.metrics[key] == before[key], key
    assert files.checkpoint.read_bytes() == checkpoint


def test_a_finished_run_keeps_its_result_or_makes_it_again(tmp_path: Path) -> None:
    """Without its rows and status nothing could be made better; without its result everything
    can.
    """
    config, files = tiny(tmp_path), RunFolder(tmp_path / "run")
    before = run(config, files.path).metrics
    files.result.unlink()
    after = run(config, files.path).metrics
    assert {k: after[k] for k in set(before) - set(CLOCKS)} == {
        k: before[k] for k in set(before) - set(CLOCKS)
    }
    files.metrics.unlink()
    (files.path / "status.json").unlink()
    assert run(config, files.path).metrics == after == read_json(files.result)


def test_what_killed_processes_left_half_written_is_removed(tmp_path: Path) -> None:
    """The temporary files of a process that is gone; one of a process that lives is its own."""
    config, files = tiny(tmp_path), RunFolder(tmp_path / "run")
    run(config, files.path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [
        files.path / f".status.json.{dead.pid}.tmp",
        files.artifacts / "depth" / f".step-000012.json.{dead.pid}.tmp",
        files.checkpoint.with_suffix(".tmp"),
    ]
    own = files.path / f".status.json.{os.getpid()}.tmp"
    for path in (*left, own):
        path.write_text("half")
    run(config, files.path)
    assert not any(path.exists() for path in left)
    assert own.exists()


def test_a_flipped_bit_is_told_and_never_trained_on(tmp_path: Path) -> None:
    """In the weights of a checkpoint, whoever reads it, and in a shard of the corpus."""
    config, files = tiny(tmp_path), RunFolder(tmp_path / "run")
    run(config, files.path)
    files.set_status("running")

    def flip(path: Path, place: int) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    with zipfile.ZipFile(files.checkpoint) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    flip(files.checkpoint, largest.header_offset + 200 + largest.file_size // 2)
    with pytest.raises(UserError, match="corrupt checkpoint"):
        run(config, files.path)
    with pytest.raises(UserError, match="or a damaged one"):
        load_model(files.path)  # as evaluation, generation, export and init_from do
    files.checkpoint.unlink()
    shard = next((tmp_path / "cache").rglob("*.val.bin"))
    flip(shard, 10)
    with pytest.raises(UserError, match="checksum differs"):
        run(config, files.path)
