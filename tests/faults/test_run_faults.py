"""Every writing call of a training run: killed before it, halfway, out of space, failed, on a disk
that stays full or read-only. The next start ends with the very files of a run that nothing
disturbed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import write_run

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


def test_a_stride_of_faults_leaves_no_trace(bench: Bench) -> None:
    assert bench.calls > 60
    bench.check_all(bench.stride(60))


@pytest.mark.slow
@pytest.mark.parametrize("action", ["kill", "ENOSPC", "EIO"])
def test_every_fault_leaves_no_trace(bench: Bench, action: str) -> None:
    bench.check_all(bench.every(action))


@pytest.mark.slow
def test_a_disk_that_stays_full_or_read_only_leaves_no_trace(bench: Bench) -> None:
    bench.check_all(bench.stride(10, LASTING))
