"""The intervals of records whose single runs were not kept, from the numbers that they print."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from analysis_helpers import record

from analysis.gain.paired import crossed_seeds, paired_shift

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def script():
    return record("001-coverage/old_records.py")


#: What the records printed of their runs, before any of this.
PRINTED = {
    ("003-scaling-nano", "full"): (0.56, 0.83, 1.25),
    ("003-scaling-nano", "block8"): (0.38, 0.79, 1.64),
    ("012-scaling-half-rate-nano", "full"): (1.03, 1.14, 1.25),
    ("012-scaling-half-rate-nano", "block8"): (0.93, 1.08, 1.26),
    ("011-wall-clock-nano", "full"): (0.35, 0.54, 0.83),
    ("011-wall-clock-nano", "block8"): (0.33, 0.55, 0.93),
}


def test_tables_of_means_give_the_intervals_that_were_printed_and_bound_the_two_way_ones(script):
    for name, x, columns in script.RECORDS:
        text = (RESULTS / name / "README.md").read_text()
        for variant, column in zip(("full", "block8"), columns, strict=True):
            old, narrow, wide = script.ranges(name, x, column, variant)
            assert old == pytest.approx(PRINTED[name, variant], abs=0.011)
            assert wide[0] <= narrow[0] < old[1] < narrow[1] <= wide[1]
            told = re.findall(rf"^\| {variant} \|.*to.*\| ([\d.]+) to ([\d.]+) \|$", text, re.M)
            assert [float(v) for v in told[-1]] == pytest.approx(wide, abs=0.006), name


def test_whatever_the_seeds_did_the_two_way_interval_lies_between_the_bounds(script):
    """Random tables, of which only what a record prints is used."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 2.3, 5)
    for shared in (0.0, 1.0, 3.0):
        base = 2 * np.exp(-0.08 * x)[:, None] + 0.015 * rng.normal(size=(5, 3))
        worth = 0.02 + 0.01 * rng.normal(size=(5, 3)) + 0.01 * shared * rng.normal(size=3)
        logs = np.log(base), np.log(base - worth)
        shift = paired_shift(x, logs[0].mean(1), x, logs[1].mean(1))
        pairs = logs[0] - logs[1]
        low, high = np.exp(crossed_seeds(shift, pairs).delta())
        found = script._two_way(shift, pairs.mean(axis=1), pairs.std(axis=1, ddof=1))
        widths = [b / a for a, b in found]
        assert min(widths) - 1e-3 <= high / low <= max(widths) + 1e-3
