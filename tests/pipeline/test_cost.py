"""The model of a cluster: its bytes are counted in test_ranks.py; here what must hold of the
rest.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from attnres_lab import cli
from attnres_lab.model import ModelConfig
from attnres_lab.pipeline.cost import Machine, Work, access, compare, estimate, in_flight
from attnres_lab.residual.attnres import BlockConfig, FullConfig
from attnres_lab.residual.delta import DeltaConfig
from attnres_lab.residual.mhc import MHCConfig

MODEL = ModelConfig(64, 32, 16, 2)
WORK, MACHINE = Work(4, 2, 8, 1, 128), Machine(1e9, 1e9, 1e6)


def test_memory_accesses_are_the_papers_of_its_typical_case():
    """128 sublayers, 8 blocks, 4 streams: 3, 5.5, 24 and 34; our Full chooses 11 reads a phase."""
    model = ModelConfig(64, 32, 64, 2)
    found = [
        access(replace(model, residual=r))
        for r in (model.residual, BlockConfig(num_blocks=8), MHCConfig())
    ]
    assert found == [3, 5.5, 34]
    assert 22 < access(replace(model, residual=FullConfig())) <= 24
    with pytest.raises(ValueError, match="no published count of memory accesses for delta"):
        access(replace(model, residual=DeltaConfig()))


def test_a_step_is_work_bubble_and_what_the_hops_add():
    slow = estimate(MODEL, WORK, MACHINE)
    fast = estimate(MODEL, WORK, replace(MACHINE, link=1e15))
    assert fast.seconds == pytest.approx(fast.bare)
    assert slow.bytes == fast.bytes
    assert slow.bare > slow.seconds >= fast.seconds
    assert fast.bubble == 3 / (8 * 2 + 3)
    whole = estimate(MODEL, replace(WORK, microbatches=16), replace(MACHINE, link=1e15))
    assert whole.seconds / fast.seconds == pytest.approx((16 * 2 + 3) / (8 * 2 + 3))


def test_caching_saves_bytes_and_never_time_or_memory():
    rows = {(label, caching): e for label, caching, e in compare(MODEL, WORK, MACHINE)}
    assert {label for label, _ in rows} == {"baseline", "block8", "full", "mhc"}
    for label in ("block8", "full"):
        cached, whole = rows[label, True], rows[label, False]
        assert cached.bytes < whole.bytes
        assert cached.bare < whole.bare
        assert cached.memory < whole.memory
    assert rows["mhc", True].bytes == 4 * rows["baseline", True].bytes


def test_the_first_rank_holds_what_the_schedules_let_in():
    assert in_flight(Work(4, 1, 8, 1, 1)) == 4
    assert in_flight(Work(4, 2, 8, 1, 1)) == 2 * 3 + 4 + 1
    assert in_flight(Work(4, 2, 4, 1, 1)) == 8


def test_the_command_prints_a_row_each_and_refuses_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def attnres(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["attnres", "plan", "cluster", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(str(caught.value.code or 0))

    config = str(Path(__file__).parents[2] / "experiments/tiny.yaml")
    assert attnres(config, "model.num_layers=8", "--ranks", "4", "--virtual", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("A model, not a measurement")
    assert len(lines) == 2 + 6
    assert attnres(config, "model.num_layers=3", "--ranks", "4") == 2
    assert "do not divide into 4 ranks x 1 stages" in capsys.readouterr().err


def test_a_large_model_is_planned_at_once(tmp_path: Path) -> None:
    """27 layers of width 2304, as in the paper's 48B model; a pass in a mode that traces every
    operation took minutes.
    """
    large = ModelConfig(64, 2304, 27, 32, residual=BlockConfig(block_size=6))
    before = time.process_time()
    rows = compare(large, Work(9, 3, 36, 1, 8192), MACHINE)
    assert time.process_time() - before < 10
    assert len(rows) == 6
    # 26 of the embedding; at cut k of 26 a block for every 3 stages, and the open one in between
    whole = 26 + sum(k // 3 + (k % 3 > 0) for k in range(1, 27))
    units = {
        caching: e.bytes // (8192 * 2304 * 2) for label, caching, e in rows if "block" in label
    }
    assert units[False] == whole
    assert units[True] < whole


def test_the_command_says_what_a_prompt_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Block of 8: nine sources of 2 bytes; the baseline one; mHC four streams."""
    config = str(Path(__file__).parents[2] / "experiments/tiny.yaml")
    words = [
        config,
        "model.dim=128",
        "model.num_heads=2",
        "model.num_layers=8",
        "--tokens",
        "1000000",
    ]
    words += ["--ranks", "4", "--chunk", "1000"]
    monkeypatch.setattr(sys, "argv", ["attnres", "plan", "prefill", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    _, _, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    one = 1e6 * 128 * 2 / 1e9
    for (name, *found), sources in zip(rows, (1, 9, 17, 4), strict=True):
        expected = [one * sources, one * sources / 4, one * sources / 4000]
        assert [float(x) for x in found] == pytest.approx(expected, abs=1e-3), name
    monkeypatch.setattr(sys, "argv", ["attnres", "plan", "prefill", config, "--chunk", "9"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "chunk: 9 tokens are no multiple of 8 ranks" in capsys.readouterr().err
