"""What the gain warns of, how it treats incomplete tables, and what does not matter to it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from analysis_helpers import arms
from scipy import stats

from analysis import compute_equivalent_gain
from analysis.gain.paired import pool_seeds, shared_seeds_p


@pytest.mark.parametrize("how", ["status", "nan", "inf"])
def test_diverged_runs_are_counted_and_named(how):
    """By status or by a loss that is not finite; the cell is lost, not the size's other seeds."""
    table = arms(5, 2).assign(status="finished")
    table.loc[3, "status" if how == "status" else "val/loss"] = {
        "status": "diverged",
        "nan": np.nan,
        "inf": np.inf,
    }[how]
    result = compute_equivalent_gain(table, "full")
    assert any("1 of 20 runs diverged" in w and "full d0 seed 1" in w for w in result.warnings)
    assert any(w.startswith("full has no run to pair at d0 seed 1") for w in result.warnings)
    assert result.per_size["pairs"].tolist() == [1, 2, 2, 2, 2]
    without = compute_equivalent_gain(table.drop(index=3), "full")
    assert result.interval == without.interval


def test_unfinished_runs_are_counted():
    table = arms(5, 2).assign(status="finished")
    table.loc[[2, 3], "status"] = ["running", "failed"]
    table.loc[2, "val/loss"] = np.nan
    assert any(
        "2 of 20 runs did not finish: baseline d0 seed 1, full d0 seed 1" in w
        for w in compute_equivalent_gain(table, "full").warnings
    )


def test_missing_cells_are_named_and_the_rest_is_paired():
    """A seed only one arm has, and a size only the other arm has."""
    table = arms(6, 2)
    gone = ((table["variant"] == "full") & (table["size"] == "d1") & (table["seed"] == 1)) | (
        (table["variant"] == "baseline") & (table["size"] == "d5")
    )
    result = compute_equivalent_gain(table[~gone], "full")
    assert "full has no run to pair at d1 seed 1: left out of the comparison" in result.warnings
    assert (
        "baseline has no run to pair at d5 seed 0, d5 seed 1: left out of the comparison"
        in result.warnings
    )
    assert result.per_size["pairs"].tolist() == [2, 1, 2, 2, 2]


def test_what_a_size_or_a_seed_does_to_both_arms_cancels():
    """Random factors per cell on both losses leave every paired difference as it was."""
    table = arms(5, 3)
    factor = table.groupby(["size", "seed"])["val/loss"].transform(
        lambda v: 1 + 1e-3 * np.sin(1e6 * v.iloc[0])
    )
    before = compute_equivalent_gain(table, "full")
    after = compute_equivalent_gain(
        table.assign(**{"val/loss": table["val/loss"] * factor}), "full"
    )
    assert after.per_size["log_ratio"].to_numpy() == pytest.approx(
        before.per_size["log_ratio"].to_numpy(), abs=1e-12
    )
    assert after.gain == pytest.approx(before.gain, rel=0.02)


def test_order_of_rows_and_other_variants_do_not_matter():
    table = arms(5, 2)
    other = table[table["variant"] == "full"].assign(variant="other", **{"val/loss": 1.0})
    result = compute_equivalent_gain(
        pd.concat([table, other]).sample(frac=1, random_state=0), "full"
    )
    assert result.interval == pytest.approx(compute_equivalent_gain(table, "full").interval)


def test_sizes_come_in_the_order_of_their_compute():
    """d10 after d9, whatever the alphabet says."""
    per_size = compute_equivalent_gain(arms(11), "full").per_size
    assert per_size["size"].tolist() == [f"d{i}" for i in range(11)]


def test_labels_may_be_numbers_categories_or_an_index_that_repeats():
    """The arms as dotted config values, categorical columns, and tables put together without a new
    index.
    """
    table = arms(5, 2)
    plain = compute_equivalent_gain(table, "full")
    numbers = table.assign(
        **{"model.residual.num_blocks": table["variant"].map({"baseline": 1, "full": 8})}
    )
    assert (
        compute_equivalent_gain(numbers, 8, 1, by="model.residual.num_blocks").interval
        == plain.interval
    )
    assert (
        compute_equivalent_gain(
            table.astype({"variant": "category", "size": "category"}), "full"
        ).interval
        == plain.interval
    )
    repeats = pd.concat([part.reset_index(drop=True) for _, part in table.groupby("variant")])
    assert compute_equivalent_gain(repeats, "full").interval == plain.interval


def test_any_column_may_be_the_axis():
    """Seconds in place of FLOPs: a variant that is twice as slow per FLOP has half the gain, and
    half of every limit.
    """
    table = arms(5, 2)
    table["seconds"] = table["flops"] / 1e15 * np.where(table["variant"] == "full", 2.0, 1.0)
    per_flop, per_second = (
        compute_equivalent_gain(table, "full", x=x) for x in ("flops", "seconds")
    )
    assert per_second.gain == pytest.approx(per_flop.gain / 2)
    assert [2 * v for v in per_second.interval + per_second.fieller] == pytest.approx(
        per_flop.interval + per_flop.fieller
    )
    assert "times the seconds" in per_second.summary()


def test_seeds_as_pairs_are_offered_only_when_the_pretest_allows():
    """With the same effect at every size an interval over seeds stands beside; with an effect of
    its own at each size there is none.
    """
    table = arms(5, 4, noise=0)
    full = table["variant"] == "full"
    by_seed = table["seed"].map({0: 0.002, 1: -0.001, 2: -0.003, 3: 0.002}) * full
    by_size = (
        table["size"].map({f"d{i}": v for i, v in enumerate((0.02, -0.02, 0.01, -0.02, 0.01))})
        * full
    )
    same, own = (
        compute_equivalent_gain(table.assign(**{"val/loss": table["val/loss"] + e}), "full")
        for e in (by_seed, by_seed + by_size)
    )
    assert same.pooled is not None
    assert same.pooled.gain == same.gain
    assert own.pooled is None
    assert compute_equivalent_gain(arms(), "full").pooled is None


def test_the_pretest_is_a_one_way_analysis_of_variance():
    """p of scipy's f_oneway over unbalanced sizes."""
    values = np.random.default_rng(1).normal(size=(4, 3))
    values[1, 2] = values[3, 1] = np.nan
    assert pool_seeds(values)[0] == pytest.approx(
        stats.f_oneway(*(row[~np.isnan(row)] for row in values)).pvalue
    )


def test_an_exponent_that_is_not_identified_is_said():
    """Noise as large as the fall of the loss: Fieller is unbounded, and the warning says that the
    gain is not identified.
    """
    table = arms(4)
    table["val/loss"] = [2.0, 2.0, 2.1, 2.1, 1.95, 1.95, 2.02, 2.02]
    result = compute_equivalent_gain(table, "full")
    assert result.fieller == (0.0, np.inf)
    assert any("the exponent is not identified" in w for w in result.warnings)


def test_losses_that_differ_a_lot_are_questioned():
    table = arms()
    table.loc[table["variant"] == "full", "val/loss"] /= 1.3
    assert any(
        "differs by more than a factor 1.25" in w and "comparable" in w
        for w in compute_equivalent_gain(table, "full").warnings
    )


def test_few_sizes_and_one_seed_are_warned_of():
    assert {"only 3 sizes", "one seed per size"} <= set(
        compute_equivalent_gain(arms(3), "full").warnings
    )
    assert not {"only 3 sizes", "one seed per size"} & set(
        compute_equivalent_gain(arms(5, 2), "full").warnings
    )


def test_the_test_of_shared_seed_effects_is_the_paired_t_test_for_two_seeds_and_holds_its_level():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 2))
    assert shared_seeds_p(values) == pytest.approx(
        stats.ttest_rel(values[:, 0], values[:, 1]).pvalue
    )
    assert np.mean(
        [shared_seeds_p(rng.normal(size=(5, 3))) < 0.1 for _ in range(4000)]
    ) == pytest.approx(0.1, abs=0.015)
    assert np.isnan(shared_seeds_p(values[:, :1]))


def test_a_seed_that_moves_all_sizes_alike_is_warned_of():
    table = arms(5, 3)
    assert not any(
        "moves all sizes" in warning for warning in compute_equivalent_gain(table, "full").warnings
    )
    table.loc[(table["variant"] == "full") & (table["seed"] == 1), "val/loss"] *= 1.05
    assert any(
        "a seed moves all sizes alike" in warning
        for warning in compute_equivalent_gain(table, "full").warnings
    )
