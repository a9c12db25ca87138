"""What the gain refuses, with the rows or columns that are wrong; what looks wrong and is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from analysis_helpers import arms

from analysis import ablation_table, compute_equivalent_gain, gain_at_size, paper


def changed(row: int, column: str, value: object) -> pd.DataFrame:
    table = arms()
    table[column] = (
        table[column].astype(object)
        if column in table and isinstance(value, str)
        else table.get(column)
    )
    table.loc[row, column] = value
    return table


BAD = {
    "missing column": (arms().drop(columns="flops"), "no column 'flops' in the runs"),
    "no runs of the baseline": (
        arms().query("variant != 'baseline'"),
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
    "text for a loss": (
        arms().assign(**{"val/loss": "3.1"}),
        "column 'val/loss' is not numeric",
    ),
    "text for compute": (arms().assign(flops="1e17"), "column 'flops' is not numeric"),
    "no size": (changed(4, "size", None), "row 4: size is empty"),
    "duplicate cells": (
        pd.concat([arms(), arms().iloc[[5]]], ignore_index=True),
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
        changed(5, "val/loss", arms().loc[5, "val/loss"] / np.log(2)),
        "row 5: val/loss is 1.44 times that of other runs of the same size",
    ),
    "another tokenizer": (
        arms().assign(**{"val/bpb": lambda t: t["val/loss"] / 3 * np.where(t.index == 7, 1.2, 1)}),
        "row 7: the ratio of val/loss to val/bpb differs",
    ),
    "a word of its own for a status": (
        changed(3, "status", "dunno").fillna({"status": "finished"}),
        "row 3: unknown status dunno; valid: finished",
    ),
    "one size": (arms(1, 4), r"1 paired size \(d0\): a power law and its error need at least 3"),
    "no size of both": (
        arms(4, 4)[lambda r: (r["variant"] == "full") == (r["size"] == "d0")],
        r"0 paired sizes: .* at least 3 at which 'baseline' and the variant have finished",
    ),
    "two sizes": (arms(2, 4), r"2 paired sizes \(d0, d1\)"),
    "equal compute": (
        arms().assign(flops=1e17),
        "column 'flops' is the same at every size of baseline",
    ),
    "a loss that rises": (
        arms().assign(**{"val/loss": lambda t: 1 / t["val/loss"]}),
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
    table = arms()
    table.loc[rows, "val/loss"] /= np.log(2)
    with pytest.raises(ValueError, match="bits and nats mixed"):
        compute_equivalent_gain(table, "full")
    stated = table.assign(loss_unit="nats", **{"val/loss": arms()["val/loss"]})
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
    table = changed(5, "val/loss", arms().loc[5, "val/loss"] / np.log(2)).assign(
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
        compute_equivalent_gain(arms(), "fulll")
    with pytest.raises(
        ValueError, match="no column 'val/los' in the runs; did you mean 'val/loss'"
    ):
        compute_equivalent_gain(arms(), "full", y="val/los")
    with pytest.raises(ValueError, match="variant and baseline are both 'full'"):
        compute_equivalent_gain(arms(), "full", "full")
    with pytest.raises(ValueError, match="definition must be 'extra' or 'saving', not 'both'"):
        compute_equivalent_gain(arms(), "full").at(1e18, "both")
    with pytest.raises(ValueError, match="C must be finite and above 0, found 0"):
        compute_equivalent_gain(arms(), "full").at(0)


TABLE_2 = paper.table_2()


def test_whole_flop_beyond_64_bits_and_nullable_columns_are_numbers():
    """Python counts FLOP exactly; past 1.8e19 pandas keeps such a column as objects."""
    expected = compute_equivalent_gain(TABLE_2, "block").interval
    exact = TABLE_2.assign(flops=[int(c) for c in TABLE_2["flops"]])
    assert exact["flops"].dtype == object
    for table in (exact, TABLE_2.convert_dtypes(), TABLE_2.set_index("size", drop=False)):
        assert compute_equivalent_gain(table, "block").interval == pytest.approx(expected)
        assert ablation_table(table).rows["pairs"].tolist() == [5, 5, 5, 5]


def test_a_gain_at_one_size_names_what_it_lacks():
    with pytest.raises(ValueError, match="level is 95"):
        gain_at_size(TABLE_2, "block", 0.055, level=95)
    unpaired = TABLE_2.assign(seed=(TABLE_2["variant"] == "block").astype(int))
    with pytest.raises(ValueError, match="0 paired sizes: there is none at which"):
        gain_at_size(unpaired, "block", 0.055)
