"""The benchmark harness runs, checks what it measures and writes what it prints."""

from __future__ import annotations

import csv
from unittest.mock import patch

import pytest
import torch
from typer.testing import CliRunner

from attnres_lab.benchmarks import mixers, pipeline, residual
from attnres_lab.cli import app
from attnres_lab.errors import UserError
from attnres_lab.mixers import State
from attnres_lab.model import Transformer
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


@pytest.mark.parametrize(
    ("mode", "tokens", "label"),
    [
        ("prefill", 24, "prefill-cpu-fp32-d8-L2-1x24-c10"),
        ("decode", 64, "decode-cpu-fp32-d8-L2-1x24"),
    ],
)
def test_reading_and_decoding_are_rows_too(tmp_path, mode, tokens, label):
    """A prompt of 24 tokens in chunks of 10, and 64 tokens after it."""
    read = []

    words = ["--mode", mode, "--seq-len", "24", "--chunk", "10", "--out", str(tmp_path)]
    through = Transformer.through

    def watched(self, x_BTD, cache=None):
        if cache is not None:
            read.append((cache.length, x_BTD.shape[1]))
        return through(self, x_BTD, cache)

    with (
        patch.object(residual, "bandwidth", lambda case: 1e9),
        patch.object(Transformer, "through", watched),
    ):
        result = CliRunner().invoke(app, [*TINY, *words, "--variants", "baseline full"])
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob(f"*{label}.csv")
    rows = list(csv.DictReader(file.read_text().splitlines()))
    for row in rows:
        found = float(row["tokens_per_second"]) * float(row["median_ms"]) / 1e3
        assert found == pytest.approx(tokens)
        assert float(row["quartile1_ms"]) <= float(row["quartile3_ms"])
    prompt = [(0, 10), (10, 10), (20, 4)]
    calls = 2 + 2 + 1  # to warm up, timed, and for the memory
    assert read.count((0, 10)) == read.count((20, 4)) == 2 * (calls if mode == "prefill" else 1)
    assert set(read) - set(prompt) == {(n, 1) for n in range(24, 88) if mode == "decode"}


@pytest.mark.slow
def test_the_pipeline_benchmark_counts_what_crosses():
    """Two ranks of two stages, eight sublayers: 3 tensors of the baseline, 7 of Full with what a
    rank holds and 15 without; there and back, in fp32.
    """
    sizes = ["--dim", "64", "--layers", "4", "--batch", "4", "--seq-len", "64", "--repeats", "2"]
    result = CliRunner().invoke(app, ["bench", "pipeline", *sizes])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()[2:]]
    assert [" ".join(row[:-6]) for row in rows] == list(pipeline.ARMS)
    assert float(rows[0][-3]) == 1.0
    one = 2 * 4 * 64 * 64 * 4 / 1e6
    assert [row[-1] for row in rows] == [f"{n * one:.2f}" for n in (3, 7, 15, 7, 15)]


def test_a_pipeline_that_cannot_be_laid_out_is_not_measured():
    for words, message in (
        (["--layers", "3"], "6 sublayers do not divide into 2 ranks x 2 stages"),
        (["--microbatches", "1"], "1 are fewer than the 2 ranks"),
    ):
        with pytest.raises(UserError, match=message):
            CliRunner().invoke(app, ["bench", "pipeline", *words], catch_exceptions=False)


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
