"""What is asked of a gain errs as often as it says, by the script of the record and in short."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analysis_helpers import record

from analysis.gain import paired

COUNT = 6_000  # a Monte Carlo error of .003 at .95


@pytest.fixture(scope="module")
def script():
    return record("001-coverage/claims.py")


@pytest.mark.parametrize(("sizes", "seeds", "tau"), [(5, 1, 0.0), (12, 3, 0.0), (5, 3, 1.0)])
def test_an_interval_covers_at_its_level(script, sizes, seeds, tau):
    found = script.levels(script.World(sizes, seeds, tau=tau), COUNT)
    for level, covered in zip((0.8, 0.9, 0.95, 0.99), found, strict=True):
        assert level - 0.012 <= covered <= level + 0.03


@pytest.mark.parametrize(("sizes", "seeds", "tau"), [(5, 3, 0.0), (12, 3, 0.0), (8, 3, 1.0)])
@pytest.mark.parametrize("within", [0.05, 0.1])
def test_equivalence_and_non_inferiority_are_claimed_falsely_in_a_twentieth(
    script, sizes, seeds, tau, within
):
    world = script.World(sizes, seeds, tau=tau)
    lower, upper, inferior, power, not_below = script.equivalence(world, within, COUNT)
    assert max(lower, upper, inferior) <= 0.06
    assert not_below >= power > lower / 2
    if (sizes, within) == (12, 0.1):
        assert lower > 0.04, "not for being too careful"
        assert power > 0.95


def test_the_gain_at_one_size_is_held_by_the_scatter_of_its_seeds(script):
    for seeds in (2, 3, 5):
        shared, own = script.one_size(script.World(seeds=seeds), count=COUNT)
        assert shared == own == pytest.approx(0.95, abs=0.012)
    shared, own = script.one_size(script.World(seeds=3, apart=1.0), count=COUNT)
    assert own == pytest.approx(0.95, abs=0.012)
    assert shared < 0.87


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sizes": 12, "seeds": 3},
        {"seeds": 3, "tau": 1.0},
        {"seeds": 3, "apart": 1.0},
        {"cost": 1.2},
        {"seeds": 3, "fewer": 2},
    ],
)
def test_the_largest_size_is_not_foretold_in_a_twentieth_where_it_is_as_the_others(script, changes):
    world = script.World(**changes)
    wrong, covered = script.largest(world, count=COUNT)
    assert wrong == pytest.approx(0.05, abs=0.012)
    assert covered == pytest.approx(0.952, abs=0.014)
    assert script.largest(world, 0.03, COUNT)[0] > 0.55


def test_taking_few_seeds_at_the_largest_size_for_many_would_cry_wolf(script, monkeypatch):
    """What the check above would look like if the scatter of fewer seeds were left out."""
    real = paired.foretold
    monkeypatch.setattr(script, "foretold", lambda c, pairs: real(c, np.ones_like(pairs)))
    world = script.World(seeds=3, fewer=2)
    assert script.largest(world, count=COUNT)[0] > 0.1
    assert script.largest(replace(world, fewer=0), count=COUNT)[0] < 0.06
