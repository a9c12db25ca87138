"""Training in a run folder: what a step is, what is recorded, what a variant or a split changes."""

import itertools
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from helpers import tiny

from attnres_lab.config import load, to_yaml
from attnres_lab.runs.folder import RunFolder
from attnres_lab.training.environment import uncommitted
from attnres_lab.training.module import Stopwatch
from attnres_lab.training.run import run
from attnres_lab.training.validation import Validation

ROOT = Path(__file__).parent.parent


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


def test_the_step_of_every_row_is_timed_exactly_and_the_bar_shows_its_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last one's too, which ends between two rows; a step has four micro-batches."""
    exact: dict[str, list[bool]] = {}
    lap = Stopwatch.lap

    def noted(self: Stopwatch, part: str) -> None:
        exact.setdefault(part, []).append(self.exact)
        lap(self, part)

    monkeypatch.setattr(Stopwatch, "lap", noted)
    changes = {"train.log_every": 2, "budget": "3 steps", "train.micro_batch_size": 1}
    run(tiny(tmp_path, **changes), tmp_path / "run", progress=True)
    assert exact["optimizer"] == [False, True, True]
    last = [row["train/loss"] for row in RunFolder(tmp_path / "run").rows() if "train/loss" in row]
    assert f"step 3  loss {last[-1]:.3f}  " in capsys.readouterr().err


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


def test_accumulation_is_the_same_step_as_one_large_batch(tmp_path: Path) -> None:
    losses = []
    for micro in (None, 1):
        config = tiny(tmp_path, **{"train.micro_batch_size": micro})
        losses.append(run(config, tmp_path / f"micro{micro}").metrics["val/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


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


def test_a_budget_in_seconds_ends_near_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own, that goes on by a hundredth of a second whenever it is looked at."""
    looks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(looks) / 100)
    monkeypatch.setattr("attnres_lab.training.module.time", clock)
    result = run(tiny(tmp_path, **{"budget": "1.0 seconds"}), tmp_path / "run")
    assert result.status.state == "finished"
    step = result.metrics["seconds"] / result.status.step
    assert 1.0 <= result.metrics["seconds"] < 1.0 + step
    assert step < 0.1
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
