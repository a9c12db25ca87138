"""Training in a run folder: results, resumption, refusals."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytorch_lightning as pl
import torch
from helpers import tiny

from attnres_lab.config import RunConfig, load, to_yaml
from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder, read_json
from attnres_lab.training.environment import uncommitted
from attnres_lab.training.run import run
from attnres_lab.training.validation import Validation

ROOT = Path(__file__).parent.parent


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


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


def test_the_parts_of_a_step_are_the_step(tmp_path: Path) -> None:
    """Data, forward, backward, optimiser and the rest sum to the step's time; logging is beside it;
    a CPU's utilisation is not known.
    """
    run(tiny(tmp_path, **{"train.log_every": 1}), tmp_path / "run")
    for row in (row for row in RunFolder(tmp_path / "run").rows() if "train/loss" in row):
        parts = [
            row[f"perf/{part}_seconds"]
            for part in ("data", "forward", "backward", "optimizer", "rest")
        ]
        assert all(part > 0 for part in parts)
        assert sum(parts) == pytest.approx(row["perf/step_seconds"], rel=1e-6)
        assert 0 <= row["perf/logging_seconds"] < 1
        assert "perf/utilization" not in row
    assert {"system/cpu_percent", "system/memory_bytes"} <= set(
        next(RunFolder(tmp_path / "run").rows())
    )


def test_the_code_and_the_data_of_a_run_are_kept(tmp_path: Path) -> None:
    """The patch of what is not committed, new files too, gives the same code in a fresh checkout;
    the manifest is the corpus's.
    """
    code, fresh = tmp_path / "code", tmp_path / "fresh"
    git = ["git", "-c", "user.name=lab", "-c", "user.email=lab@example.org", "-C"]
    subprocess.run(["git", "init", "-q", str(code)], check=True)
    (code / "package").mkdir()
    (code / "package" / "a.py").write_text("old = 1\n")
    subprocess.run([*git, str(code), "add", "."], check=True)
    subprocess.run([*git, str(code), "commit", "-q", "-m", "start"], check=True)
    assert uncommitted(code / "package") == b""
    subprocess.run(["git", "clone", "-q", str(code), str(fresh)], check=True)
    (code / "package" / "a.py").write_text("new = 2\n")
    (code / "package" / "b.py").write_text("more = 3\n")
    subprocess.run(
        ["git", "apply", "-"], cwd=fresh, input=uncommitted(code / "package"), check=True
    )
    for name in ("a.py", "b.py"):
        assert (fresh / "package" / name).read_text() == (code / "package" / name).read_text()
    run(tiny(tmp_path, **{"budget": "1 steps"}), tmp_path / "run")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (
        json.loads((tmp_path / "run" / "artifacts" / "data.json").read_text())["fingerprint"]
        == environment["data_fingerprint"]
    )
    assert (tmp_path / "run" / "artifacts" / "code.diff").exists() == environment["dirty"]


def test_no_secret_is_kept_with_the_code(tmp_path: Path) -> None:
    """Canaries in what is not committed: only source is kept, and of it nothing that looks
    secret.
    """
    code = tmp_path / "repository"
    (code / "package").mkdir(parents=True)
    (code / "package" / "a.py").write_text("old = 1\n")
    (code / "sweep.yaml").write_text("name: s\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *author, *words], cwd=code, check=True)
    (code / "package" / ".env").write_text("TOKEN=canary-env\n")
    (code / "sweep.yaml").write_text("storage: postgresql://user:canary-yaml@host/db\n")
    source = [
        "url = 'postgresql://user:canary/with/slashes@host/db'",
        "api_key = 'canary-key'",
        '{"password": "canary-password"}',
        "plain = 'kept'",
    ]
    (code / "package" / "a.py").write_text("\n".join(source))
    kept = uncommitted(code / "package").decode()
    assert "canary" not in kept
    assert "plain = 'kept'" in kept


def test_a_run_leaves_its_whole_record_and_is_idempotent(tmp_path: Path) -> None:
    config = tiny(tmp_path, **{"model.residual.name": "full", "train.val_every": 6})
    result = run(config, tmp_path / "run")
    files = RunFolder(tmp_path / "run")
    assert result.status.state == "finished"
    rows = list(files.rows())
    assert [row["step"] for row in rows if "train/loss" in row] == [4, 8, 12]
    assert [row["step"] for row in rows if "val/loss" in row] == [6, 12]
    m = result.metrics
    assert m["tokens"] == 12 * 4 * 32
    assert m["flops"] == m["tokens"] * config.flops_per_token
    assert m["flops_6nd"] == 6 * m["params"] * m["tokens"]
    # a token is a byte, but for the ends of documents
    assert m["val/bpb"] == pytest.approx(m["val/loss"] / math.log(2), rel=0.005)
    assert m["seconds"] > 0
    assert m["peak_memory_bytes"] > 1e7
    assert load(files.config) == config
    assert json.loads(files.environment.read_text())["data_fingerprint"]
    assert list((files.artifacts / "depth").glob("*.json"))
    before = files.checkpoint.stat().st_mtime_ns
    assert run(config, tmp_path / "run").metrics == result.metrics
    assert files.checkpoint.stat().st_mtime_ns == before


def test_the_last_depth_record_is_of_the_training_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what it is where nothing is validated."""
    config = tiny(tmp_path, **{"model.residual.name": "full"})

    def record(name: str) -> dict[str, Any]:
        run(config, tmp_path / name)
        file = RunFolder(tmp_path / name).artifacts / "depth/step-000012.json"
        return json.loads(file.read_text())

    validated = record("validated")
    monkeypatch.setattr(Validation, "on_step_end", lambda *_: None)
    assert record("not") == validated


def test_the_model_learns(tmp_path: Path) -> None:
    metrics = run(
        tiny(tmp_path, **{"budget": "150 steps", "optim.lr": 1e-2}), tmp_path / "run"
    ).metrics
    assert metrics["val/loss"] < 1.5 < math.log(256)  # words of a small vocabulary


def test_variants_of_a_seed_share_trunk_batches_and_first_loss(tmp_path: Path) -> None:
    first = {}
    for name in ("baseline", "full", "block"):
        residual = {"name": name} | ({"num_blocks": 2} if name == "block" else {})
        config = tiny(
            tmp_path, **{"model.residual": residual, "train.log_every": 1, "budget": "1 steps"}
        )
        run(config, tmp_path / name)
        first[name] = next(RunFolder(tmp_path / name).rows())["train/loss"]
    assert first["full"] == pytest.approx(first["baseline"], rel=1e-4)
    assert first["block"] == pytest.approx(first["baseline"], rel=1e-4)


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
    files = RunFolder(tmp_path / "parts")
    files.path.mkdir()
    files.stop.write_text("stop")
    assert run(config, files.path).status.state == "stopped"
    assert files.status().step == 4
    files.stop.unlink()
    assert run(config, files.path).status.state == "finished"
    assert same(weights(files.path), weights(tmp_path / "whole"))

    def timeless(folder: Path) -> list[dict[str, float]]:
        kept = ("step", "tokens", "flops", "train/loss", "val/loss", "optim/lr", "optim/grad_norm")
        return [
            {k: v for k, v in row.items() if k in kept or k.startswith("depth/")}
            for row in RunFolder(folder).rows()
        ]

    assert timeless(files.path) == timeless(tmp_path / "whole")


@pytest.mark.parametrize("at", [6, 9])
def test_a_run_that_goes_on_between_two_rows_writes_the_same_rows(tmp_path: Path, at: int) -> None:
    """From the checkpoint of step 5, where rows are of steps 1 to 4, 5 to 8 and 9 to 12; of a crash
    at step 9 the second is there already, and is written again.
    """

    class Crash(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
            if trainer.global_step == at:
                raise RuntimeError("crash")

    config = tiny(tmp_path)
    run(config, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        run(config, tmp_path / "parts", callbacks=[Crash()])
    run(config, tmp_path / "parts")
    whole, parts = (
        [
            (row["step"], row["train/loss"])
            for row in RunFolder(folder).rows()
            if "train/loss" in row
        ]
        for folder in (tmp_path / "whole", tmp_path / "parts")
    )
    assert parts == whole


def test_accumulation_is_the_same_step_as_one_large_batch(tmp_path: Path) -> None:
    losses = []
    for micro in (None, 1):
        config = tiny(tmp_path, **{"train.micro_batch_size": micro})
        losses.append(run(config, tmp_path / f"micro{micro}").metrics["val/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


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


def test_divergence_ends_the_run_with_its_history(tmp_path: Path) -> None:
    result = run(
        tiny(tmp_path, **{"optim.lr": 1e30, "optim.clip": 0.0, "train.log_every": 1}),
        tmp_path / "run",
    )
    assert result.status.state == "diverged"
    assert result.status.step < 12
    rows = list(RunFolder(tmp_path / "run").rows())
    assert rows[-1]["train/loss"] in ("nan", "inf")
    assert (
        run(
            tiny(tmp_path, **{"optim.lr": 1e30, "optim.clip": 0.0, "train.log_every": 1}),
            tmp_path / "run",
        ).status.state
        == "diverged"
    )


def test_a_budget_in_seconds_ends_near_it(tmp_path: Path) -> None:
    result = run(tiny(tmp_path, **{"budget": "1.0 seconds"}), tmp_path / "run")
    assert result.status.state == "finished"
    assert 1.0 <= result.metrics["seconds"] < 2.0
    assert result.metrics["optim/lr"] == pytest.approx(3e-4, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "examples"), [("ddp", 1), ("fsdp", 5)])
def test_two_ranks_train_like_one(tmp_path: Path, strategy: str, examples: int) -> None:
    """Validated on 1 and 3 batches, so that one rank has more than the other."""
    common = {"data.val_tokens": 32 * examples, "train.val_every": 6}
    one = run(tiny(tmp_path, **common), tmp_path / "one").metrics
    ranks = {"train.devices": 2, "train.strategy": strategy, "train.device": "cpu"}
    two = run(tiny(tmp_path, **common, **ranks), tmp_path / "two").metrics
    assert two["val/loss"] == pytest.approx(one["val/loss"], rel=1e-4)
    assert two["tokens"] == one["tokens"]
    rows = [row["step"] for row in RunFolder(tmp_path / "two").rows() if "train/loss" in row]
    assert rows == [4, 8, 12]  # one writer


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
        with pytest.raises(UserError, match="another process is training"):
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
        with pytest.raises(UserError, match="last checkpoint is intact"):
            run(config, files.path)
        assert torch.load(files.checkpoint, weights_only=True)["run"]["step"] == 4
        (disk / "filler").unlink()
        assert run(config, files.path).status.state == "finished"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


CLOCKS = ("seconds", "device_seconds", "peak_memory_bytes")


@pytest.mark.parametrize("lost", ["status", "validation", "rows"])
def test_a_result_is_made_again_from_what_is_on_the_disk(tmp_path: Path, lost: str) -> None:
    """A kill after the last checkpoint and before the last status: nothing is trained again, and
    no number is missing.
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
    """In the weights of a checkpoint and in a shard of the corpus."""
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
    files.checkpoint.unlink()
    shard = next((tmp_path / "cache").rglob("*.val.bin"))
    flip(shard, 10)
    with pytest.raises(UserError, match="checksum differs"):
        run(config, files.path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("moment", ["training", "importing"])
def test_ranks_end_with_their_parent(tmp_path: Path, moment: str) -> None:
    """A rank left alone would train on in a folder that nobody holds; the first seconds of its
    life, before it can ask the kernel for anything, are no exception.
    """
    config = tiny(tmp_path, **{"train.devices": 2, "budget": "100_000 steps"})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    code = "import sys, attnres_lab as a; a.run(a.load(sys.argv[1]), sys.argv[2])"
    words = [str(tmp_path / "config.yaml"), str(tmp_path / "run")]
    first = subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT)
    ranks: list[psutil.Process] = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        ranks and (moment == "importing" or RunFolder(tmp_path / "run").metrics.exists())
    ):
        ranks = psutil.Process(first.pid).children(recursive=True)
        time.sleep(0.05)
    assert ranks
    first.kill()
    first.wait()
    _, alive = psutil.wait_procs(ranks, timeout=20)
    for process in alive:
        for each in (*process.children(recursive=True), process):
            each.kill()
    assert not alive


def test_the_final_numbers_do_not_depend_on_how_often_rows_are_written(tmp_path: Path) -> None:
    """The training loss is that of the last ten steps, after a resume too."""
    results = []
    for every in (1, 5, 12):
        config = tiny(tmp_path, **{"train.log_every": every, "train.checkpoint_every": 5})
        folder = tmp_path / f"every-{every}"
        results.append(run(config, folder).metrics)
        rows = [row["train/loss"] for row in RunFolder(folder).rows() if "train/loss" in row]
        if every == 1:
            assert results[0]["train/loss"] == pytest.approx(sum(rows[-10:]) / 10)
            assert results[0]["train/loss"] != pytest.approx(rows[-1], rel=1e-4)
    for key in ("train/loss", "val/loss", "tokens", "flops"):
        assert len({result[key] for result in results}) == 1
