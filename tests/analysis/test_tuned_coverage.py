"""Under the tuned protocol, through the functions that real sweeps ask, the interval holds."""

from __future__ import annotations

import pytest
from analysis_helpers import record


@pytest.fixture(scope="module")
def script():
    return record("001-coverage/tuned.py")


@pytest.mark.parametrize("name", ["P", "P2", "N", "N0"])
def test_it_covers_where_each_cell_has_its_own_vertex(script, name):
    world = script.WORLDS[name]
    shift, runs = script.simulate(world, "each cell's own vertex", 2_000)
    bias, covered, half = script.summary(world, shift)
    assert 0.935 <= covered <= 0.97
    assert abs(bias) < 0.2 * half
    assert 3 <= runs <= 5


def test_it_does_not_where_the_variant_takes_the_baselines_rates(script):
    """What the check above would look like if the protocol were not the tuned one."""
    world = script.WORLDS["P"]
    shift, _ = script.simulate(world, "the baseline's vertices for both arms", 1_000)
    bias, covered, _ = script.summary(world, shift)
    assert covered < 0.5
    assert bias < -2
