"""Every writing call of a training run: killed before it, halfway, out of space, failed, on a disk
that stays full or read-only. The next start ends with the very files of a run that nothing
disturbed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import write_run

from attnres_lab.config import load
from attnres_lab.training.run import run
from tests.faults.bench import Bench
from tests.faults.injector import LASTING, warm
from tests.faults.states import run_state

TINY = {
    "model.dim": 8,
    "model.num_layers": 1,
    "model.num_heads": 1,
    "model.residual": {"name": "full"},
    "data.val_tokens": 128,
    "budget": "3 steps",
    "train.log_every": 1,
    "train.checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("run").resolve()
    config = write_run(folder / "tiny.yaml", **TINY)
    with warm(folder / "warm", "tests.faults.targets") as (injector, process):
        yield Bench(folder, injector, process, "train", config, run_state)


def test_what_is_renamed_is_on_the_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut keeps the new name and loses what is behind it. Of a run and its corpus."""
    synced, renamed = set[int](), dict[str, bool]()
    fsync, replace = os.fsync, os.replace

    def sync(file: int) -> None:
        fsync(file)
        synced.add(os.fstat(file).st_ino)

    def rename(one: Path, other: Path) -> None:
        whole = os.stat(one).st_ino in synced
        renamed[Path(other).name] = whole and renamed.get(Path(other).name, True)
        replace(one, other)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setenv("ATTNRES_CACHE", str(tmp_path / "cache"))
    run(load(write_run(tmp_path / "tiny.yaml", **TINY)), tmp_path / "run")
    assert {"config.yaml", "status.json", "result.json", "last.ckpt", "00000.json"} <= set(renamed)
    assert [name for name, whole in renamed.items() if not whole] == []


def test_a_stride_of_faults_leaves_no_trace(bench: Bench) -> None:
    assert bench.calls > 60
    bench.check_all(bench.stride(60))


@pytest.mark.slow
def test_a_closer_stride_of_faults_leaves_no_trace(bench: Bench) -> None:
    bench.check_all(bench.stride(20))


@pytest.mark.exhaustive
@pytest.mark.parametrize("action", ["kill", "ENOSPC", "EIO"])
def test_every_fault_leaves_no_trace(bench: Bench, action: str) -> None:
    bench.check_all(bench.every(action))


@pytest.mark.exhaustive
def test_a_disk_that_stays_full_or_read_only_leaves_no_trace(bench: Bench) -> None:
    bench.check_all(bench.stride(10, LASTING))
