"""Records against the numbers that they rest on: their runs where those were kept, else what they
print.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_helpers import record
from scipy import stats

from analysis import compute_equivalent_gain, isoflop
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


def kept(name: str) -> tuple[pd.DataFrame, str]:
    """The runs of a record and its text, spaces and line ends alike."""
    text = (RESULTS / name / "README.md").read_text()
    return pd.read_csv(RESULTS / name / "runs.csv"), " ".join(text.split())


def test_the_runs_of_the_quickstart_give_the_gains_that_its_record_prints():
    runs, text = kept("028-quickstart")
    found = {}
    for variant in ("full", "block8"):
        for x in ("flops", "seconds"):
            gain = compute_equivalent_gain(runs, variant, x=x)
            low, high = gain.interval
            assert f"{gain.gain:.2f} ({low:.2f} to {high:.2f})" in text
            found[variant, x] = gain.parallelism.p
    block, full = (f"{found[v, 'flops']:.3f}".lstrip("0") for v in ("block8", "full"))
    assert f"equal exponents are rejected (p = {block}; Full {full})" in text


def test_the_runs_of_the_isoflop_study_give_what_its_record_prints():
    runs, text = kept("009-isoflop-nano")
    runs = runs[~runs["tuning"]]
    means = runs.groupby(["budget", "variant", "size"])["val/loss"].mean().unstack()
    for row in means.to_numpy():
        cells = [f"**{x:.3f}**" if x == row.min() else f"{x:.3f}" for x in row]
        assert " | ".join(cells) in text
    studies = isoflop(runs)
    for name, label in (("baseline", "baseline"), ("full", "Full"), ("block8", "Block")):
        law = studies[name].size_law
        low, high = law.interval()["b"]
        assert f"C^{law.params['b']:.2f} ({label}, {low:.2f} to {high:.2f})" in text
        for valley in studies[name].valleys:
            best, low, high = (
                f"{n:,.0f}" for n in np.round([valley.best.at, *valley.best.interval], -3)
            )
            assert f"{best} ({low} to {high})" in text
    bottoms = pd.DataFrame(
        {"variant": name, "size": f"{v.budget:.1g}", "flops": v.budget, "val/loss": v.loss}
        for name, study in studies.items()
        for v in study.valleys
    )
    for variant in ("full", "block8"):
        gain = compute_equivalent_gain(bottoms, variant)
        low, high = gain.interval
        assert f"{gain.gain:.2f} ({low:.2f} to {high:.2f})" in text


def test_the_runs_of_mini_give_what_its_record_prints():
    """Of the widths that are whole: every arm on three seeds."""
    runs, text = kept("029-mini")
    runs = runs[(runs["status"] == "finished") & ~runs["tuning"].astype(bool)]
    runs = runs[runs.groupby("size")["seed"].transform("size") == 12]
    means = runs.groupby(["model.dim", "variant"])["val/loss"].mean().unstack()
    for width, row in means.iterrows():
        worth = " | ".join(
            f"{row[v] - row['baseline']:+.4f}" for v in ("full", "block8", "full-h4")
        )
        assert f"| {width:.0f} | " in text
        assert worth in text
    for variant in ("full", "block8", "full-h4"):
        gain = compute_equivalent_gain(runs, variant)
        low, high = gain.interval
        p = f"{gain.parallelism.p:.3f}".lstrip("0")
        assert f"{gain.gain:.3f} ({low:.3f} to {high:.3f}) | {p} |" in text


@pytest.mark.parametrize(("variant", "words"), [("block4", "falls by"), ("full", "a slope of")])
def test_the_line_over_depths_has_the_shape_as_its_unit(variant, words):
    runs, text = kept("007-depth-nano")
    runs = runs[~runs["tuning"]]
    losses = runs.pivot_table(index="size", columns="variant", values="val/loss")
    layers = losses.index.str.extract(r"L(\d+)")[0].astype(float)
    line = stats.linregress(np.log2(layers), losses[variant] - losses["baseline"])
    sign = -1 if words == "falls by" else 1
    reach = stats.t.ppf(0.975, 3) * line.stderr
    limits = sorted(sign * (line.slope + side * reach) for side in (-1, 1))
    form = "{:.3f}" if sign < 0 else "{:+.3f}"
    slope, low, high = (form.format(value) for value in (sign * line.slope, *limits))
    assert re.search(rf"{words} {re.escape(slope)} [^(]*\((95 % interval )?", text)
    assert f"{low} to {high}" in text


def test_the_runs_of_the_architecture_study_give_what_its_record_prints():
    """Each shape's losses; the paired mean over shapes, and that of the better heads by depth."""
    runs, text = kept("008-architecture-nano")
    runs = runs[~runs["tuning"]]
    table = runs.pivot_table(
        index=["size", "model.num_heads", "seed"], columns="variant", values="val/loss"
    )
    assert len(table) == 16
    for (size, heads), pair in table.groupby(level=["size", "model.num_heads"], sort=False):
        base, full = (", ".join(f"{v:.4f}" for v in pair[arm]) for arm in ("baseline", "full"))
        bold = r"\*{0,2}"
        cells = " \\| ".join(f"{bold}{re.escape(losses)}{bold}" for losses in (base, full))
        assert re.search(rf"\| {heads} \| {cells}", text), (size, heads)
    shapes = table.groupby(level=["size", "model.num_heads"]).mean()
    difference = shapes["full"] - shapes["baseline"]
    reach = stats.t.ppf(0.975, 7) * difference.sem()
    mean = difference.mean()
    assert f"{mean:+.3f} ({mean - reach:+.3f} to {mean + reach:+.3f}" in text
    best = shapes.groupby(level="size").min()
    order = best.index.str.extract(r"L(\d+)")[0].astype(int).argsort()
    rising, (*level, last) = (
        [f"{value:.3f}" for value in best[arm].iloc[order]] for arm in ("baseline", "full")
    )
    assert f"({', '.join(rising)})" in text
    assert f"({', '.join(level)}) and rises at 16 ({last})" in text
