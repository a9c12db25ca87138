"""Ablation tables against scipy's paired t test and textbook examples."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import ablation_table
from analysis.noise import shared_noise


def runs(
    effects: dict[str, float],
    seeds: int = 4,
    noise: float = 0.001,
    sizes: tuple[str, ...] = ("d32",),
    seed: int = 0,
    nested: bool = True,
) -> pd.DataFrame:
    """Runs whose seeds and sizes shift all variants alike; every size has seeds of its own, or all
    share them.
    """
    rng = np.random.default_rng(seed)
    common = {
        (s, k + 10 * i * nested): rng.normal(2 - 0.2 * i, 0.02)
        for i, s in enumerate(sizes)
        for k in range(seeds)
    }
    return pd.DataFrame(
        {"variant": v, "size": s, "seed": k, "val/loss": base + effect + rng.normal(0, noise)}
        for v, effect in effects.items()
        for (s, k), base in common.items()
    )


@pytest.mark.parametrize("variant", ["full", "mhc"])
def test_over_seeds_it_is_the_paired_t_test(variant):
    """Mean, interval and p of scipy's ttest_rel, though the seeds differ by far more than the
    variants.
    """
    table = runs({"baseline": 0, "full": -0.004, "mhc": 0.001})
    table = table[table["variant"].isin(["baseline", variant])]
    row = ablation_table(table).rows.set_index("variant").loc[variant]
    losses = table.pivot(index="seed", columns="variant", values="val/loss")
    expected = stats.ttest_rel(losses[variant], losses["baseline"])
    interval = expected.confidence_interval(0.95)
    assert (row["p"], row["low"], row["high"], row["df"]) == pytest.approx(
        (expected.pvalue, *interval, 3)
    )


def test_several_variants_share_the_variance_of_a_two_way_layout():
    """By hand: residuals less the means of variant and seed, (variants - 1)(seeds - 1) degrees of
    freedom at each size.
    """
    table = runs({"baseline": 0, "full": -0.004, "mhc": 0.001, "x": 0}, seeds=3, sizes=("a", "b"))
    y = table.pivot(index=["size", "seed"], columns="variant", values="val/loss")
    y = y.to_numpy().reshape(2, 3, 4)
    rest = y - y.mean(axis=1, keepdims=True) - y.mean(axis=2, keepdims=True)
    rest += y.mean(axis=(1, 2), keepdims=True)
    se = np.sqrt(2 * np.sum(rest**2) / 12 / 6)
    result = ablation_table(table)
    row = result.rows.set_index("variant").loc["full"]
    assert result.pooled
    assert (row["df"], row["high"] - row["difference"]) == pytest.approx(
        (12, stats.t.ppf(0.975, 12) * se)
    )


@pytest.mark.parametrize("others", [{}, {"mhc": 0.001, "x": 0}])
def test_seeds_that_sizes_share_are_the_cases(others):
    """Of two arms scipy's paired t test on each seed's mean over the sizes; of several the two-way
    layout of those means, by hand.
    """
    effects = {"baseline": 0, "full": -0.004, **others}
    table = runs(effects, seeds=3, sizes=("a", "b", "c", "d"), nested=False)
    y = table.groupby(["seed", "variant"])["val/loss"].mean().unstack()
    paired = stats.ttest_rel(y["full"], y["baseline"])
    rest = y - y.to_numpy().mean(axis=0) - y.to_numpy().mean(axis=1)[:, None] + y.to_numpy().mean()
    df = 2 * max(len(others) + 1, 1)
    half = stats.t.ppf(0.975, df) * np.sqrt(2 * np.sum(rest.to_numpy() ** 2) / df / 3)
    if not others:
        assert half == pytest.approx(np.ptp(paired.confidence_interval(0.95)) / 2)
    result = ablation_table(table)
    row = result.rows.set_index("variant").loc["full"]
    assert (row["df"], row["high"] - row["difference"]) == pytest.approx((df, half))
    assert any("sizes share seeds" in w for w in result.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("left_out", [0, 4])
def test_a_seed_that_moves_all_sizes_alike_is_in_the_interval(left_out, monkeypatch):
    """By sizes times seeds as cases it is .76 here; with runs missing it holds too."""
    monkeypatch.setattr("analysis.noise.SIMULATED", 19)  # always pooled, and faster
    rng, held, tables = np.random.default_rng(0), 0, 150
    for k in range(tables):
        table = runs({"baseline": 0, "a": 0, "b": 0}, 3, 0.01, tuple("vwxyz"), seed=k, nested=False)
        moved = rng.normal(0, 0.01, (3, 3))
        arm = pd.factorize(table["variant"])[0]
        table["val/loss"] += moved[arm, table["seed"]]
        table = table.drop(rng.choice(len(table), left_out, replace=False))
        found = ablation_table(table).rows.query("variant != 'baseline'")
        held += int(((found["low"] < 0) & (found["high"] > 0)).sum())
    assert 0.91 < held / (2 * tables) < 0.99


def test_a_table_without_a_pair_says_so():
    table = runs({"baseline": 0, "full": 0})
    table.loc[table["variant"] == "full", "seed"] += 100
    result = ablation_table(table)
    assert dict(zip(result.rows["variant"], result.rows["verdict"], strict=True)) == {
        "full": "no pair",
        "baseline": "baseline",
    }
    assert "| full | 0 | – | – | – | – | – | no pair |" in result.to_markdown()
    assert ablation_table(table[table["variant"] == "baseline"]).rows["variant"].tolist() == [
        "baseline"
    ]


def test_an_effect_of_four_sds_is_found_at_three_seeds():
    """In nearly all tables, where each variant's own 2 degrees of freedom find it in a quarter;
    without an effect 5 % of tables at most find anything.
    """
    names = ["a", "b", "c", "d"]
    found = false = 0
    for k in range(20):
        effects = {"baseline": 0.0, **dict.fromkeys(names, 0.0)}
        null = ablation_table(runs(effects, seeds=3, seed=k)).rows.set_index("variant")
        false += bool((null["p_holm"] < 0.05).any())
        rows = ablation_table(runs(effects | {"a": -0.004}, seeds=3, seed=k)).rows
        found += rows.set_index("variant").loc["a", "verdict"].startswith("better")
    assert found >= 17
    assert false <= 3


@pytest.mark.parametrize("wild", ["baseline", "mhc"])
@pytest.mark.parametrize("others", [["full"], ["full", "a", "b", "c"]], ids=len)
def test_where_one_scatters_more_each_keeps_its_variance_to_itself(wild, others):
    """A wild variant would hide the effects of the calm ones, a wild baseline would make them look
    sure.
    """
    effects = {"baseline": 0.0, "mhc": 0.0, **dict.fromkeys(others, -0.004)}
    table = runs(effects, seeds=5)
    assert ablation_table(table).pooled
    rows = table["variant"] == wild
    table.loc[rows, "val/loss"] += np.random.default_rng(1).normal(0, 0.03, rows.sum())
    result = ablation_table(table)
    assert not result.pooled
    assert "variance of each variant alone" in result.caption
    assert any("scatter unequally (p = " in warning for warning in result.warnings)


def test_the_check_of_equal_scatter_holds_its_level():
    """p below .05 in 5 % of tables of equal noise, missing cells included."""
    low = 0
    for k in range(100):
        table = runs(dict.fromkeys(["baseline", "a", "b", "c"], 0.0), seeds=3, seed=k)
        table = table.drop(index=[4]).rename(columns={"variant": "arm", "val/loss": "y"})
        low += shared_noise(table).p < 0.05
    assert 1 <= low <= 11


def test_over_sizes_with_one_seed_the_sizes_are_the_pairs():
    table = runs({"baseline": 0, "full": -0.004}, seeds=1, sizes=("a", "b", "c", "d"))
    losses = table.pivot(index="size", columns="variant", values="val/loss")
    assert ablation_table(table).rows["p"].min() == pytest.approx(
        stats.ttest_rel(losses["full"], losses["baseline"]).pvalue
    )


def test_seeds_within_sizes_give_the_error_of_a_blocked_comparison():
    """Balanced sizes and seeds: the residual of a two-way layout, computed here by hand."""
    table = runs({"baseline": 0, "full": -0.004}, seeds=3, sizes=("a", "b"))
    d = (
        table.pivot(index=["size", "seed"], columns="variant", values="val/loss")
        .pipe(lambda t: t["full"] - t["baseline"])
        .to_numpy()
        .reshape(2, 3)
    )
    se = np.sqrt(((d - d.mean(axis=1, keepdims=True)) ** 2).sum() / 4 / 6)
    row = ablation_table(table).rows.set_index("variant").loc["full"]
    assert (row["df"], row["high"] - row["difference"]) == pytest.approx(
        (4, stats.t.ppf(0.975, 4) * se)
    )


def test_holm_is_the_textbook_procedure():
    """Holm (1979): 0.01, 0.02, 0.03, 0.04 become 0.04, 0.06, 0.06, 0.06; what has no p is not
    counted.
    """
    from analysis.ablation import _holm

    assert _holm(np.array([0.03, 0.01, np.nan, 0.04, 0.02])) == pytest.approx(
        [0.06, 0.04, np.nan, 0.06, 0.06], nan_ok=True
    )


def test_equivalence_is_two_one_sided_tests():
    """The larger p of scipy's two one-sided paired tests against the margin."""
    table = runs({"baseline": 0, "rescaled": 0.0005}, seeds=6)
    losses = table.pivot(index="seed", columns="variant", values="val/loss")
    shift = losses["rescaled"] - losses["baseline"]
    expected = max(
        stats.ttest_1samp(shift, 0.005, alternative="less").pvalue,
        stats.ttest_1samp(shift, -0.005, alternative="greater").pvalue,
    )
    result = ablation_table(table, margin=0.005)
    row = result.rows.set_index("variant").loc["rescaled"]
    assert row["p_equivalent"] == pytest.approx(expected)
    assert row["verdict"] == "equivalent"
    assert "within ±0.005" in result.caption


def test_verdicts_and_order():
    """Best first; an effect, a small effect within the margin, none, and too little data are told
    apart.
    """
    effects = {"baseline": 0.0, "worse": 0.03, "better": -0.03, "slightly": -0.002, "same": 0.0}
    table = runs(effects, seeds=8, noise=0.0004, seed=1)
    lone = pd.DataFrame([{"variant": "lone", "size": "d32", "seed": 0, "val/loss": 1.0}])
    result = ablation_table(pd.concat([table, lone], ignore_index=True))
    verdicts = dict(zip(result.rows["variant"], result.rows["verdict"], strict=True))
    assert verdicts == {
        "lone": "one pair",
        "better": "better",
        "slightly": "better, equivalent",
        "same": "equivalent",
        "baseline": "baseline",
        "worse": "worse",
    }
    assert result.rows["difference"].is_monotonic_increasing
    assert any(
        w.startswith("lone has no run to pair at d32 seed 1, d32 seed 2") for w in result.warnings
    )


def test_diverged_runs_are_counted_and_a_variant_without_runs_is_named():
    table = runs({"baseline": 0, "full": -0.004, "gone": 0}).assign(status="finished")
    table.loc[table["variant"] == "gone", "status"] = "diverged"
    result = ablation_table(table)
    assert any("4 of 12 runs diverged" in w for w in result.warnings)
    assert "gone has no finished run: left out" in result.warnings
    assert "gone" not in set(result.rows["variant"])


def test_a_bad_variant_is_no_change_of_unit():
    """A learning rate that leaves the loss at 1.44 times the baseline's is a result, not an
    error.
    """
    table = runs({"baseline": 0, "high lr": 0})
    table.loc[table["variant"] == "high lr", "val/loss"] *= 1.44
    assert ablation_table(table).rows["verdict"].tolist() == ["baseline", "worse"]


def test_it_prints_as_markdown_latex_and_html():
    """Every cell in every form, special characters escaped."""
    table = runs({"base_line": 0, "block_8 & <b>|": -0.004})
    result = ablation_table(table, "base_line")
    markdown, latex, html = (
        result.to_markdown(),
        result.to_latex(),
        re.sub(r">\s+<", "><", result.to_html()),
    )
    assert r"| block_8 & <b>\| | 4 |" in markdown
    assert r"block\_8 \& <b>| & 4 &" in latex
    assert "<td>block_8 &amp; &lt;b&gt;|</td><td>4</td>" in html
    assert html.count("<tr") == markdown.count("\n|") - 1 == 3


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"baseline": "basline"}, "no run has variant = 'basline'; did you mean 'baseline'"),
        ({}, {"margin": 0}, "margin must be finite and above 0, found 0"),
        ({"val/loss": 0.0}, {}, "val/loss must be finite and above 0"),
        ({"seed": 0}, {}, "several runs of one variant, size and seed"),
        ({"val/loss": np.nan}, {}, "no run of 'baseline' finished"),
    ],
)
def test_bad_input_is_named(change, options, message):
    with pytest.raises(ValueError, match=message):
        ablation_table(runs({"baseline": 0, "full": 0}).assign(**change), **options)
