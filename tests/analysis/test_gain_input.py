"""What the gain refuses, what it warns of, and how it treats incomplete tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import compute_equivalent_gain
from analysis.gain.paired import pool_seeds, shared_seeds_p


def runs(sizes: int = 5, seeds: int = 1, noise: float = 0.002) -> pd.DataFrame:
    """A variant worth 1.25 times its compute that costs 3 % more."""
    rng = np.random.default_rng(7)
    rows = []
    for i in range(sizes):
        for k in range(seeds):
            common = rng.normal(0, 0.005)
            for v, worth, cost in (("baseline", 1.0, 1.0), ("full", 1.25, 1.03)):
                c = 1e17 * 2.0**i * cost
                rows.append(
                    {
                        "variant": v,
                        "size": f"d{i}",
                        "seed": k,
                        "flops": c,
                        "val/loss": 30 * (c * worth) ** -0.06 + common + rng.normal(0, noise),
                    }
                )
    return pd.DataFrame(rows)


def changed(row: int, column: str, value: object) -> pd.DataFrame:
    table = runs()
    table[column] = (
        table[column].astype(object)
        if column in table and isinstance(value, str)
        else table.get(column)
    )
    table.loc[row, column] = value
    return table


BAD = {
    "missing column": (runs().drop(columns="flops"), "no column 'flops' in the runs"),
    "no runs of the baseline": (
        runs().query("variant != 'baseline'"),
        "no run has variant = 'baseline'; there are full",
    ),
    "zero loss": (
        changed(3, "val/loss", 0.0),
        "row 3: val/loss must be finite and above 0, found 0",
    ),
    "negative loss": (
        changed(3, "val/loss", -1.0),
        "row 3: val/loss must be finite and above 0, found -1",
    ),
    "zero compute": (changed(2, "flops", 0.0), "row 2: flops must be finite and above 0"),
    "negative compute": (changed(2, "flops", -1e17), "row 2: flops must be finite and above 0"),
    "NaN compute": (
        changed(2, "flops", np.nan),
        "row 2: flops must be finite and above 0, found nan",
    ),
    "infinite compute": (
        changed(2, "flops", np.inf),
        "row 2: flops must be finite and above 0, found inf",
    ),
    "text for a loss": (runs().assign(**{"val/loss": "3.1"}), "column 'val/loss' is not numeric"),
    "text for compute": (runs().assign(flops="1e17"), "column 'flops' is not numeric"),
    "no size": (changed(4, "size", None), "row 4: size is empty"),
    "duplicate cells": (
        pd.concat([runs(), runs().iloc[[5]]], ignore_index=True),
        "rows 5, 10: several runs of one variant, size and seed",
    ),
    "mixed data": (
        changed(6, "data_fingerprint", "b").fillna({"data_fingerprint": "a"}),
        r"column 'data_fingerprint' holds 2 values, 'a' in row 0; 'b' in row 6",
    ),
    "mixed units": (
        changed(6, "loss_unit", "bits").fillna({"loss_unit": "nats"}),
        "column 'loss_unit' holds 2 values",
    ),
    "bits among nats": (
        changed(5, "val/loss", runs().loc[5, "val/loss"] / np.log(2)),
        "row 5: val/loss is 1.44 times that of other runs of the same size",
    ),
    "another tokenizer": (
        runs().assign(**{"val/bpb": lambda t: t["val/loss"] / 3 * np.where(t.index == 7, 1.2, 1)}),
        "row 7: the ratio of val/loss to val/bpb differs",
    ),
    "a word of its own for a status": (
        changed(3, "status", "dunno").fillna({"status": "finished"}),
        "row 3: unknown status dunno; valid: finished",
    ),
    "one size": (runs(1, 4), r"1 paired size \(d0\): a power law and its error need at least 3"),
    "no size of both": (
        runs(4, 4)[lambda r: (r["variant"] == "full") == (r["size"] == "d0")],
        r"0 paired sizes: .* at least 3 at which 'baseline' and 'full' have finished with the same",
    ),
    "two sizes": (runs(2, 4), r"2 paired sizes \(d0, d1\)"),
    "equal compute": (
        runs().assign(flops=1e17),
        "column 'flops' is the same at every size of baseline",
    ),
    "a loss that rises": (
        runs().assign(**{"val/loss": lambda t: 1 / t["val/loss"]}),
        "column 'val/loss' does not fall with 'flops'",
    ),
}


@pytest.mark.parametrize(("table", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_names_its_rows_or_columns(table, message):
    with pytest.raises(ValueError, match=message):
        compute_equivalent_gain(table, "full")


@pytest.mark.parametrize("rows", [[1, 3, 5, 7, 9], [0, 2, 4, 6, 8], [3, 9]], ids=str)
def test_an_arm_in_bits_is_refused(rows):
    """All of one arm, or some of its sizes; a column that names the one unit settles it."""
    table = runs()
    table.loc[rows, "val/loss"] /= np.log(2)
    with pytest.raises(ValueError, match="bits and nats mixed"):
        compute_equivalent_gain(table, "full")
    stated = table.assign(loss_unit="nats", **{"val/loss": runs()["val/loss"]})
    assert compute_equivalent_gain(stated, "full").gain > 1


def near_bits(table: pd.DataFrame) -> int:
    """Rows whose y is within 3 % of 1.4427 times the lowest of their size."""
    ratio = table["y"] / table.groupby("dose")["y"].transform("min")
    return int((abs(ratio * np.log(2) - 1) < 0.03).sum())


def test_a_parallel_line_assay_is_no_mixture_of_units():
    """Standard and test preparation at four doses, five animals each, scattering by 15 %: ratios
    of 1.44 come up by chance, and the potency of 1.5 is inside its interval.
    """
    rng = np.random.default_rng(3)
    table = pd.DataFrame(
        [
            (arm, dose, 10 * dose + animal, 80 / (dose * potency) * rng.lognormal(0, 0.15))
            for arm, potency in (("standard", 1.0), ("test", 1.5))
            for dose in (1.0, 1.5, 2.25, 3.375)
            for animal in range(5)
        ],
        columns=["arm", "dose", "animal", "y"],
    )
    assert near_bits(table) >= 1
    found = compute_equivalent_gain(
        table.assign(size=table["dose"]),
        "test",
        "standard",
        x="dose",
        y="y",
        by="arm",
        seed="animal",
    )
    assert found.interval[0] < 1.5 < found.interval[1]


def test_reducible_losses_are_no_mixture_of_units():
    """Losses above an irreducible one: a variant that is worth 12, 6 and then 3 times the compute
    stands at ratios on both sides of 1.44, and at it once.
    """
    table = pd.DataFrame(
        [
            (arm, i, 0, 1e18 * 4**i, 0.9 * (4.0**i * worth) ** -0.2)
            for arm, worths in (("baseline", [1] * 4), ("full", [12, 6.25, 3, 2]))
            for i, worth in enumerate(worths)
        ],
        columns=["variant", "size", "seed", "flops", "y"],
    )
    assert near_bits(table.rename(columns={"size": "dose"})) == 1
    assert compute_equivalent_gain(table, "full", y="y").gain > 3


def test_a_bad_run_is_no_mixed_unit_where_bits_per_byte_tell():
    table = changed(5, "val/loss", runs().loc[5, "val/loss"] / np.log(2)).assign(
        **{"val/bpb": lambda t: t["val/loss"] / 3}
    )
    assert compute_equivalent_gain(table, "full").gain > 0


@pytest.mark.parametrize("word", ["FAILED", "crashed", "killed", "preempting", "running"])
def test_the_words_of_mlflow_and_weights_and_biases_for_a_status_are_understood(word):
    table = changed(3, "status", word).fillna({"status": "FINISHED"})
    assert any(
        "1 of 10 runs did not finish" in warning
        for warning in compute_equivalent_gain(table, "full").warnings
    )


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(ValueError, match="no run has variant = 'fulll'; did you mean 'full'"):
        compute_equivalent_gain(runs(), "fulll")
    with pytest.raises(
        ValueError, match="no column 'val/los' in the runs; did you mean 'val/loss'"
    ):
        compute_equivalent_gain(runs(), "full", y="val/los")
    with pytest.raises(ValueError, match="variant and baseline are both 'full'"):
        compute_equivalent_gain(runs(), "full", "full")
    with pytest.raises(ValueError, match="definition must be 'extra' or 'saving', not 'both'"):
        compute_equivalent_gain(runs(), "full").at(1e18, "both")
    with pytest.raises(ValueError, match="C must be finite and above 0, found 0"):
        compute_equivalent_gain(runs(), "full").at(0)


@pytest.mark.parametrize("how", ["status", "nan", "inf"])
def test_diverged_runs_are_counted_and_named(how):
    """By status or by a loss that is not finite; the cell is lost, not the size's other seeds."""
    table = runs(5, 2).assign(status="finished")
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
    table = runs(5, 2).assign(status="finished")
    table.loc[[2, 3], "status"] = ["running", "failed"]
    table.loc[2, "val/loss"] = np.nan
    assert any(
        "2 of 20 runs did not finish: baseline d0 seed 1, full d0 seed 1" in w
        for w in compute_equivalent_gain(table, "full").warnings
    )


def test_missing_cells_are_named_and_the_rest_is_paired():
    """A seed only one arm has, and a size only the other arm has."""
    table = runs(6, 2)
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
    table = runs(5, 3)
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
    table = runs(5, 2)
    other = table[table["variant"] == "full"].assign(variant="other", **{"val/loss": 1.0})
    result = compute_equivalent_gain(
        pd.concat([table, other]).sample(frac=1, random_state=0), "full"
    )
    assert result.interval == pytest.approx(compute_equivalent_gain(table, "full").interval)


def test_sizes_come_in_the_order_of_their_compute():
    """d10 after d9, whatever the alphabet says."""
    per_size = compute_equivalent_gain(runs(11), "full").per_size
    assert per_size["size"].tolist() == [f"d{i}" for i in range(11)]


def test_labels_may_be_numbers_categories_or_an_index_that_repeats():
    """The arms as dotted config values, categorical columns, and tables put together without a new
    index.
    """
    table = runs(5, 2)
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
    table = runs(5, 2)
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
    table = runs(5, 4, noise=0)
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
    assert compute_equivalent_gain(runs(), "full").pooled is None


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
    table = runs(4)
    table["val/loss"] = [2.0, 2.0, 2.1, 2.1, 1.95, 1.95, 2.02, 2.02]
    result = compute_equivalent_gain(table, "full")
    assert result.fieller == (0.0, np.inf)
    assert any("the exponent is not identified" in w for w in result.warnings)


def test_losses_that_differ_a_lot_are_questioned():
    table = runs()
    table.loc[table["variant"] == "full", "val/loss"] /= 1.3
    assert any(
        "differs by more than a factor 1.25" in w and "comparable" in w
        for w in compute_equivalent_gain(table, "full").warnings
    )


def test_few_sizes_and_one_seed_are_warned_of():
    assert {"only 3 sizes", "one seed per size"} <= set(
        compute_equivalent_gain(runs(3), "full").warnings
    )
    assert not {"only 3 sizes", "one seed per size"} & set(
        compute_equivalent_gain(runs(5, 2), "full").warnings
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
    table = runs(5, 3)
    assert not any(
        "moves all sizes" in warning for warning in compute_equivalent_gain(table, "full").warnings
    )
    table.loc[(table["variant"] == "full") & (table["seed"] == 1), "val/loss"] *= 1.05
    assert any(
        "a seed moves all sizes alike" in warning
        for warning in compute_equivalent_gain(table, "full").warnings
    )
