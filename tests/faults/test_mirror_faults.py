"""Writing calls of the mirror of a run, its own and MLflow's: killed before it, halfway, out
of space, failed. The next rebuild ends with the store of one that nothing disturbed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import write_run

from attnres_lab.config import load
from attnres_lab.training.run import run
from tests.faults.bench import Bench
from tests.faults.injector import ACTIONS, LASTING, Injector, Warm
from tests.faults.stores import provide, store_state
from tests.faults.test_run_faults import TINY


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory,
    mlflow_process: tuple[Injector, Warm],
    empty_store: Path,
) -> Bench:
    folder = tmp_path_factory.mktemp("mirror").resolve()
    config = write_run(folder / "tiny.yaml", **TINY)
    run(load(config), folder / "made")

    def prepare(runs: Path) -> None:
        provide(empty_store, runs)
        shutil.copytree(folder / "made", runs / "train" / "one")

    return Bench(folder, *mlflow_process, "mirror", config, store_state, prepare=prepare)


def test_a_stride_of_faults_leaves_no_trace(bench: Bench) -> None:
    assert bench.calls > 100
    bench.check_all(bench.stride(bench.calls // 3, ACTIONS))


@pytest.mark.slow
def test_a_closer_stride_of_faults_leaves_no_trace(bench: Bench) -> None:
    bench.check_all(bench.stride(40))


@pytest.mark.exhaustive
@pytest.mark.parametrize("action", ["kill", "ENOSPC", "EIO"])
def test_every_fault_leaves_no_trace(bench: Bench, action: str) -> None:
    bench.check_all(bench.every(action))


@pytest.mark.exhaustive
def test_a_disk_that_stays_full_or_read_only_leaves_no_trace(bench: Bench) -> None:
    bench.check_all(bench.stride(10, LASTING))
