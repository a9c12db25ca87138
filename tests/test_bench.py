"""The benchmark harness runs, checks what it measures and writes what it prints."""

from __future__ import annotations

import csv
from unittest.mock import patch

import pytest
import torch
from typer.testing import CliRunner

from attnres_lab.benchmarks import mixers, residual
from attnres_lab.cli import app
from attnres_lab.errors import UserError
from attnres_lab.mixers import State
from attnres_lab.ops import naive

TINY = [
    "bench",
    "residual",
    "--dim",
    "8",
    "--layers",
    "1",
    "--batch",
    "1",
    "--seq-len",
    "8",
    "--threads",
    "1",
    "--repeats",
    "2",
    "--no-peers",
]


def test_a_benchmark_writes_one_row_per_arm_and_a_plot(tmp_path):
    with patch.object(residual, "bandwidth", lambda case: 1e9):  # a copy of 256 MB
        result = CliRunner().invoke(
            app, [*TINY, "--variants", "baseline block2 naive:full", "--out", str(tmp_path)]
        )
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob("*.csv")
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["arm"] for row in rows] == ["baseline", "block2", "naive:full"]
    assert float(rows[0]["ratio"]) == 1.0
    assert file.with_suffix(".png").stat().st_size > 0


def naive_read(sources, query, gain, eps):
    return naive.depth_attention(sources, query, gain, eps)


def test_an_arm_that_computes_something_else_is_refused():
    case = residual.Case(dim=8, layers=2, batch=1, seq_len=8)
    with (
        patch.dict(
            "attnres_lab.benchmarks.peers.PEERS",
            {"wrong": (lambda sources, *_: sources[0], "torch", False)},
        ),
        pytest.raises(ValueError, match="wrong:full"),
    ):
        residual.check("wrong:full", case)
    with pytest.raises(UserError, match="unknown variant 'blok'"):
        residual.check("blok", case)


def test_a_peers_read_has_no_options():
    case = residual.Case(dim=8, layers=2, batch=1, seq_len=8)
    plain = {"plain": (naive_read, "torch", False)}
    with patch.dict("attnres_lab.benchmarks.peers.PEERS", plain):
        assert residual.check("plain:full", case) < 1e-5
        with pytest.raises(UserError, match="the read 'plain' has no options"):
            residual.check("plain:full+heads=4", case)


def test_an_arm_has_the_options_that_follow_it():
    case = residual.Case(dim=8, layers=2, batch=1, seq_len=8)
    config = residual.model_of("naive:full+heads=4+window=2+mixing=sigmoid", case).config.residual
    assert (config.heads, config.window, config.mixing) == (4, 2, "sigmoid")
    assert residual.model_of("block-s2+key_norm=False", case).config.residual.label == (
        "block-s2-nokeynorm"
    )
    assert residual.check("full+heads=4+window=2", case) < 1e-5
    with pytest.raises(UserError, match="full has no option 'head'; valid: query, mixing"):
        residual.model_of("full+head=4", case)


def test_a_case_that_an_arm_does_not_fit_is_a_users_error():
    with pytest.raises(UserError, match="num_blocks: 8 is not within 1 and the 2 sublayers"):
        CliRunner().invoke(app, [*TINY, "--variants", "block8"], catch_exceptions=False)


def test_the_mixers_benchmark_times_steps_and_decoding_of_those_that_decode():
    rows = mixers.measure(
        ["attention", "kda", "swiglu"], dim=16, batch=1, seq_len=8, threads=1, repeats=2
    )
    assert [row["mixer"] for row in rows] == ["attention", "kda", "swiglu"]
    assert rows[0]["train_ratio"] == 1.0
    assert ["decode_ratio" in row for row in rows] == [True, True, False]


def test_a_decoded_token_is_the_one_that_a_whole_pass_gives():
    """What is timed is decoding: the state grows by what was fed, or does not grow."""
    mixer = mixers.sublayer("kda", 16)
    x_BTD = torch.randn(1, 12, 16)
    state = State()
    with torch.inference_mode():
        whole = mixer(x_BTD)
        mixer(x_BTD[:, :11], 0, state)
        last = mixer(x_BTD[:, 11:], 11, state)
    torch.testing.assert_close(last, whole[:, 11:], rtol=1e-4, atol=1e-5)


def test_a_mixer_that_is_none_is_refused():
    with pytest.raises(UserError, match="unknown mixer 'kdaa'"):
        mixers.sublayer("kdaa", 16)
