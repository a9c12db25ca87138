"""Every writing call of a sweep, its trials' and its coordinator's: killed before it, halfway, out
of space, failed, on a disk that stays full or read-only. The next start ends with the files and the
study of an undisturbed sweep.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import write_run

from tests.faults.bench import Bench
from tests.faults.injector import LASTING, Injector, Warm, warm
from tests.faults.states import search_state, sweep_state
from tests.faults.test_run_faults import TINY

SWEEP = {
    "name": "s",
    "base": "tiny.yaml",
    "launcher": {"workers": 1},  # one thing after the other: call n is the same call each time
    "retry": {"backoff": 0.01},
}
GRID = {"space": {"seed": [0, 1]}}
SEARCH = {
    "space": {"optim.lr": {"log": [1e-4, 1e-1]}},
    "sampler": {"name": "qmc"},
    "trials": 2,
}
CHAIN = {"function": "tests.sweep.synthetic:chain"}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Injector, Warm]]:
    with warm(
        tmp_path_factory.mktemp("warm"), "tests.faults.targets", "tests.sweep.synthetic"
    ) as both:
        yield both


def make(folder: Path, process: tuple[Injector, Warm], **changes: Any) -> Bench:
    write_run(folder / "tiny.yaml", **TINY)
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**SWEEP, **changes}))
    state = search_state if "sampler" in changes else sweep_state
    return Bench(folder, *process, "sweep", file, state)


def test_a_stride_of_faults_leaves_no_trace(tmp_path, process) -> None:
    bench = make(tmp_path, process, **GRID, **CHAIN)
    assert bench.calls > 60
    bench.check_all(bench.stride(90))


@pytest.mark.slow
def test_a_closer_stride_of_faults_leaves_no_trace(tmp_path, process) -> None:
    bench = make(tmp_path, process, **GRID, **CHAIN)
    bench.check_all(bench.stride(30))


@pytest.mark.exhaustive
@pytest.mark.parametrize("action", ["kill", "ENOSPC", "EIO"])
def test_every_fault_leaves_no_trace(tmp_path, process, action: str) -> None:
    """Trials that only write, as training does: what training itself writes is in
    ``test_run_faults``.
    """
    bench = make(tmp_path, process, **GRID, **CHAIN)
    bench.check_all(bench.every(action))


@pytest.mark.exhaustive
def test_a_disk_that_stays_full_or_read_only_leaves_no_trace(tmp_path, process) -> None:
    bench = make(tmp_path, process, **GRID, **CHAIN)
    bench.check_all(bench.stride(10, LASTING))


@pytest.mark.slow
def test_a_stride_of_faults_in_a_search_loses_no_point(tmp_path, process) -> None:
    bench = make(tmp_path, process, **SEARCH, **CHAIN)
    bench.check_all(bench.stride(18))


@pytest.mark.slow
def test_a_stride_of_faults_in_a_sweep_that_trains_leaves_no_trace(tmp_path, process) -> None:
    bench = make(tmp_path, process, **GRID)
    bench.check_all(bench.stride(60))
