"""Batches are pure functions of (seed, step), and an epoch visits every window exactly once."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from attnres_lab.data import Corpus
from attnres_lab.data.corpus import _mix, permute, shard_path
from attnres_lab.errors import UserError


def make(folder: Path, sizes: list[int], val_sizes: list[int] | None = None) -> Corpus:
    """A corpus whose tokens are all different, so that a token tells its place; validation tokens
    start at a million.
    """
    for split, split_sizes, first in (
        ("train", sizes, 0),
        ("val", val_sizes or [50] * len(sizes), 1_000_000),
    ):
        for index, size in enumerate(split_sizes):
            np.arange(first, first + size, dtype="<u4").tofile(shard_path(folder, index, split))
            first += size
    return Corpus(
        folder,
        str(folder),
        2_000_000,
        1.0,
        "<u4",
        tuple(sizes),
        tuple(val_sizes or [50] * len(sizes)),
    )


def starts(sizes: list[int], seq_len: int) -> list[int]:
    """First tokens of the windows, by slicing: the windows of a shard that have all their seq_len +
    1 tokens.
    """
    found, first = [], 0
    for size in sizes:
        found += [
            first + start
            for start in range(0, size, seq_len)
            if len(range(size)[start : start + seq_len + 1]) == seq_len + 1
        ]
        first += size
    return found


def test_mix_is_splitmix64() -> None:
    """The published outputs for seed 1234567."""
    states = np.array([1234567], np.uint64) + np.arange(5, dtype=np.uint64) * np.uint64(
        0x9E3779B97F4A7C15
    )
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert _mix(states).tolist() == published


@given(total=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=150, deadline=None)
def test_permute_is_a_permutation(total: int, key: int) -> None:
    places = np.arange(total, dtype=np.uint64)
    assert sorted(permute(places, total, np.full(total, key, np.uint64)).tolist()) == list(
        range(total)
    )


@pytest.mark.parametrize("total", [5, 30, 121])
def test_every_place_gets_every_window_equally_often(total: int) -> None:
    """Over 200 x total keys the window at a place, and the step between neighbouring places, are
    uniform.
    """
    keys = _mix(np.arange(200 * total, dtype=np.uint64))
    first, second = (
        permute(np.full(len(keys), place, np.uint64), total, keys).astype(int) for place in (0, 1)
    )
    assert stats.chisquare(np.bincount(first, minlength=total)).pvalue > 1e-3
    assert stats.chisquare(np.bincount((second - first) % total, minlength=total)[1:]).pvalue > 1e-3


@given(
    sizes=st.lists(st.integers(0, 120), min_size=1, max_size=5),
    seq_len=st.integers(1, 9),
    batch_size=st.integers(1, 40),
    seed=st.integers(-5, 2**63),
)
@settings(max_examples=60, deadline=None)
def test_each_epoch_visits_every_window_exactly_once(
    sizes: list[int], seq_len: int, batch_size: int, seed: int
) -> None:
    expected = starts(sizes, seq_len)
    with tempfile.TemporaryDirectory() as folder:
        corpus = make(Path(folder), sizes)
        if not expected:
            with pytest.raises(UserError, match="shorter than one sequence"):
                corpus.train_batch(seed, 0, batch_size, seq_len)
            return
        steps = -(-3 * len(expected) // batch_size)
        rows = np.concatenate(
            [corpus.train_batch(seed, step, batch_size, seq_len) for step in range(steps)]
        )
    assert (np.diff(rows, axis=1) == 1).all()  # every row is contiguous text
    for epoch in range(3):
        assert (
            sorted(rows[epoch * len(expected) : (epoch + 1) * len(expected), 0].tolist())
            == expected
        )


@given(seed=st.integers(0, 2**32), step=st.integers(0, 10**9), other=st.integers(0, 10**9))
@settings(max_examples=40, deadline=None)
def test_a_batch_depends_on_seed_and_step_alone(seed: int, step: int, other: int) -> None:
    """Whatever was read before, in whatever order, by whichever object; ranks read the rows of one
    batch.
    """
    with tempfile.TemporaryDirectory() as folder:
        first = make(Path(folder), [500, 700])
        batch = first.train_batch(seed, step, 6, 16)
        first.train_batch(seed, other, 6, 16)
        assert (first.train_batch(seed, step, 6, 16) == batch).all()
        second = make(Path(folder), [500, 700])
        for rank in range(4):
            assert (
                second.train_batch(seed, step, 6, 16, slice(rank, None, 4)) == batch[rank::4]
            ).all()
        assert batch.dtype == np.int64
        assert batch.shape == (6, 17)


def test_seeds_and_epochs_have_their_own_order(tmp_path: Path) -> None:
    corpus = make(tmp_path, [901])
    # of 100 windows
    orders = [
        corpus.train_batch(seed, epoch, 100, 9)[:, 0].tolist()
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len({tuple(order) for order in orders}) == 9
    assert orders[0] != sorted(orders[0])


def test_the_validation_set_is_fixed_and_spread(tmp_path: Path) -> None:
    corpus = make(tmp_path, [100, 100], [205, 405])
    batches = list(corpus.val_batches(10, 4, 125))
    assert [len(batch) for batch in batches] == [4, 4, 4]
    first = np.concatenate(batches)[:, 0] - 1_000_000
    assert (first == np.concatenate(list(corpus.val_batches(10, 4, 125)))[:, 0] - 1_000_000).all()
    assert first[0] == 0
    assert np.diff(first).min() >= 50
    assert np.diff(first).max() <= 60
    everything = np.concatenate(list(corpus.val_batches(10, 7, 10**9)))[:, 0] - 1_000_000
    assert everything.tolist() == starts([205, 405], 10)
