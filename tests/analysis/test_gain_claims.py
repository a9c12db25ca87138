"""What can be asked of a gain: another level, a claimed value, one size, the largest size left
out, several axes in one sentence.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import compute_equivalent_gain, gain_at_size, paper


def runs(gain=1.25, sizes=6, seeds=3, sigma=0.003, seed=0) -> pd.DataFrame:
    """Nested seeds; the variant costs twice the seconds."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(sizes):
        for k in range(seeds):
            for variant, worth, cost in (("baseline", 1.0, 1.0), ("full", gain, 2.0)):
                c = 1e15 * 3.0**i
                loss = 9 * (c * worth) ** -0.055 * np.exp(rng.normal() * sigma)
                rows.append((variant, f"s{i}", 10 * i + k, c, c * cost / 1e12, loss))
    columns = ["variant", "size", "seed", "flops", "seconds", "val/loss"]
    return pd.DataFrame(rows, columns=columns)


def test_a_level_is_a_quantile_of_the_same_t():
    low, high = (compute_equivalent_gain(runs(), "full", level=p) for p in (0.8, 0.99))
    widths = [np.log(g.interval[1] / g.gain) for g in (low, high)]
    expected = stats.t.ppf(0.995, 5) / stats.t.ppf(0.9, 5)
    assert widths[1] / widths[0] == pytest.approx(expected)
    assert "99 % interval" in high.summary()
    with pytest.raises(ValueError, match="level is 95: give a number between 0 and 1"):
        compute_equivalent_gain(runs(), "full", level=95)


def test_equivalence_is_two_one_sided_tests():
    """Below .05 exactly where the 90 % interval lies inside the margins."""
    gain = compute_equivalent_gain(runs(), "full")
    low, high = compute_equivalent_gain(runs(), "full", level=0.9).interval
    reach = max(1.25 / low, high / 1.25) - 1
    assert gain.equivalent_to(1.25, within=reach).p == pytest.approx(0.05)
    inside = gain.equivalent_to(1.25, within=2 * reach)
    assert "is within" in inside.text
    assert inside.p < 0.05
    weak = gain.equivalent_to(1.0, within=0.01)
    assert (weak.p > 0.5, weak.p_inferior < 1e-3) == (True, True)
    assert "is not below 1 by more than 1%" in weak.text
    assert "is not shown to be within" in gain.equivalent_to(1.6, within=0.01).text
    with pytest.raises(ValueError, match="claim and within must be above 0"):
        gain.equivalent_to(1.25, within=0)


def test_equivalence_errs_at_its_level():
    """The truth at the margin: shown in 5 % of tables."""
    shown = [
        compute_equivalent_gain(runs(1.25 * 1.1, seeds=1, seed=k), "full")
        .equivalent_to(1.25, within=0.1)
        .p
        < 0.05
        for k in range(120)
    ]
    assert 0.0 < np.mean(shown) < 0.11


def test_one_size_has_a_gain_under_a_given_exponent():
    """Student's t over its seeds, by scipy; one seed leaves it open."""
    table = runs(sizes=1, seeds=4)
    (found,) = gain_at_size(table, "full", 0.055)
    losses = table.pivot(index="seed", columns="variant", values="val/loss")
    logs = np.log(losses["baseline"] / losses["full"]) / 0.055
    limits = stats.t.interval(0.95, 3, logs.mean(), stats.sem(logs))
    assert (found.gain, *found.interval) == pytest.approx(np.exp([logs.mean(), *limits]))
    assert gain_at_size(runs(sizes=2, seeds=1), "full", 0.055)[1].interval == (0, np.inf)
    with pytest.raises(ValueError, match="alpha is 0: give the exponent"):
        gain_at_size(table, "full", 0)


def test_the_largest_size_left_out_is_foretold_or_not():
    """p is uniform where one number holds; a largest size that loses is seen."""
    low = [
        compute_equivalent_gain(runs(seeds=1, seed=k), "full").without_largest().p < 0.05
        for k in range(100)
    ]
    assert 0 < np.mean(low) < 0.12
    table = runs()
    table.loc[(table["variant"] == "full") & (table["size"] == "s5"), "val/loss"] *= 1.03
    held = compute_equivalent_gain(table, "full").without_largest()
    assert held.p < 0.01
    assert held.observed < 1 < held.interval[0]
    with pytest.raises(ValueError, match="3 sizes: leaving the largest out needs at least 4"):
        compute_equivalent_gain(runs(sizes=3), "full").without_largest()


def test_one_sentence_says_flops_and_seconds():
    per_flop, per_second = (
        compute_equivalent_gain(runs(), "full", x=x) for x in ("flops", "seconds")
    )
    text = per_flop.sentence(per_second)
    assert text.startswith("full, against baseline, is better per FLOP (1.")
    assert "and worse per second (0." in text
    other = compute_equivalent_gain(paper.table_2(), "block")
    with pytest.raises(ValueError, match="one variant and one baseline"):
        per_flop.sentence(other)
