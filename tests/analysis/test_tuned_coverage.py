"""Under the tuned protocol, through the functions that real sweeps ask, the interval holds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "docs" / "results" / "001-coverage" / "tuned.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("tuned_record", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


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
