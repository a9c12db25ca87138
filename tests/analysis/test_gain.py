"""The gain against the public figures of the paper's Table 2, and against truths that need no
statistics.
"""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from analysis_helpers import COMPUTE, LOSSES, PFLOPS_DAY
from scipy import stats

from analysis import compute_equivalent_gain, paper


def table(losses: dict[str, list[float]] = LOSSES, compute: np.ndarray = COMPUTE) -> pd.DataFrame:
    rows = [
        {"variant": v, "size": f"s{i}", "seed": 0, "flops": compute[i], "val/loss": loss}
        for v, row in losses.items()
        for i, loss in enumerate(row)
    ]
    return pd.DataFrame(rows)


def curves(
    law, gain: float, extra: float = 1.0, sizes: int = 5, span: float = 1000
) -> pd.DataFrame:
    """Noise-free runs of `law` and of a variant that is worth `gain` times its compute and costs
    `extra` times as much at a size.
    """
    compute = np.geomspace(1, span, sizes)
    rows = [
        {"variant": v, "size": i, "seed": 0, "flops": c * cost, "val/loss": law(c * cost * worth)}
        for v, cost, worth in (("baseline", 1.0, 1.0), ("new", extra, gain))
        for i, c in enumerate(compute)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("variant", "gain", "delta", "fieller", "largest", "law"),
    [
        ("block", 1.2390, (1.1838, 1.2967), (1.1854, 1.2990), 1.283, (1.8411, 0.05650)),
        ("full", 1.3064, (1.2318, 1.3855), (1.2344, 1.3894), 1.333, (1.8354, 0.05583)),
        ("mhc-lite", 1.2642, (1.2161, 1.3143), (1.2178, 1.3167), 1.265, (1.838, 0.0549)),
    ],
)
def test_table_2_gives_the_public_figures(variant, gain, delta, fieller, largest, law):
    """Gains, both intervals, both laws and the separate slopes at the largest C, to every digit
    that was published.
    """
    result = compute_equivalent_gain(table(compute=COMPUTE / PFLOPS_DAY), variant)
    assert round(result.gain, 4) == gain
    assert tuple(round(v, 4) for v in result.interval) == delta
    assert tuple(round(v, 4) for v in result.fieller) == fieller
    slopes = result.separate_slopes
    assert round(slopes.largest.gain, 3) == largest
    assert tuple(round(v, d) for v, d in zip(slopes.baseline, (4, 5), strict=True)) == (
        1.8622,
        0.05494,
    )
    digits = (3, 4) if variant == "mhc-lite" else (4, 5)
    assert tuple(round(v, d) for v, d in zip(slopes.variant, digits, strict=True)) == law


def test_table_2_does_not_reject_equal_exponents():
    """Baseline against Block: t = 1.83 on 3 degrees of freedom, p = .16."""
    result = compute_equivalent_gain(table(), "block").parallelism
    assert (round(result.statistic, 2), result.df, round(result.p, 2)) == (1.83, 3, 0.16)


def test_the_unit_of_compute_does_not_matter():
    """FLOPs and PFLOP/s-days give the same gain, band and comparison."""
    flops, days = (
        compute_equivalent_gain(table(compute=COMPUTE / unit), "full") for unit in (1, PFLOPS_DAY)
    )
    assert flops.interval == pytest.approx(days.interval)
    assert flops.unpaired.interval == pytest.approx(days.unpaired.interval)
    assert flops.at(2 * PFLOPS_DAY, "saving").interval == pytest.approx(
        days.at(2, "saving").interval
    )


@pytest.mark.parametrize("extra", [1.0, 1.04, 0.7])
@pytest.mark.parametrize("gain", [0.8, 1.0, 1.25, 3.0])
def test_a_shifted_power_law_is_recovered_whatever_the_variant_costs(gain, extra):
    """Noise-free, also where the variant needs other FLOPs at the same size."""
    result = compute_equivalent_gain(curves(lambda c: 3 * c**-0.06, gain, extra), "new")
    assert result.gain == pytest.approx(gain, rel=1e-9)
    assert result.per_size["gain"].to_numpy() == pytest.approx(gain, rel=1e-9)
    for definition in ("extra", "saving"):
        assert result.at(30, definition).gain == pytest.approx(gain, rel=1e-9)
    assert result.parallelism.p > 0.05


def test_definitions_agree_with_the_laws_they_read():
    """The baseline at C times "extra" has the variant's loss at C; the variant at C over "saving"
    has the baseline's.
    """
    result = compute_equivalent_gain(table(), "block")
    (a, alpha), (b, beta) = result.separate_slopes.baseline, result.separate_slopes.variant
    C = 2e20
    extra, saving = result.at(C, "extra"), result.at(C, "saving")
    assert a * (C * extra.gain) ** -alpha == pytest.approx(b * C**-beta)
    assert b * (C / saving.gain) ** -beta == pytest.approx(a * C**-alpha)
    assert extra.interval[0] < extra.gain < extra.interval[1]


@pytest.mark.parametrize("definition", ["extra", "saving"])
@pytest.mark.parametrize("at", [5e19, 3e20])
def test_the_band_is_the_delta_method_on_paired_residuals(definition, at):
    """Against derivatives taken by finite differences of numpy's fits, with the residuals' 2 x 2
    covariance, n - 2 degrees of freedom.
    """
    runs = table()
    runs.loc[runs["variant"] == "full", "flops"] *= [1.02, 1.05, 1.01, 1.04, 1.03]
    x = [np.log(runs.loc[runs["variant"] == v, "flops"].to_numpy()) for v in ("baseline", "full")]
    y = [np.log(LOSSES[v]) for v in ("baseline", "full")]

    def log_gain(both):
        laws = [np.polyfit(a - np.log(at), b, 1) for a, b in zip(x, both, strict=True)]
        return (laws[0][1] - laws[1][1]) / -laws[0 if definition == "extra" else 1][0]

    step = 1e-6 * np.eye(10).reshape(10, 2, 5)
    gradient = np.array([log_gain(y + s) - log_gain(y - s) for s in step]).reshape(2, 5) / 2e-6
    residuals = np.array(
        [b - np.polyval(np.polyfit(a, b, 1), a) for a, b in zip(x, y, strict=True)]
    )
    se = np.sqrt(np.einsum("ai,ab,bi->", gradient, residuals @ residuals.T / 3, gradient))
    band = compute_equivalent_gain(runs, "full").at(at, definition)
    assert band.gain == pytest.approx(np.exp(log_gain(y)))
    assert np.log(band.interval[1] / band.gain) == pytest.approx(
        stats.t.ppf(0.975, 3) * se, rel=1e-5
    )


def test_only_the_extra_reading_extrapolates_at_the_largest_compute():
    """At the largest C the baseline must be read beyond its runs, the variant need not."""
    result = compute_equivalent_gain(table(), "block")
    largest = result.per_size["x_baseline"].max()
    assert result.at(largest, "extra").extrapolates
    assert not result.at(largest, "saving").extrapolates
    assert not result.at(1e20, "extra").extrapolates
    assert result.at(1e18, "extra").extrapolates
    assert result.per_size["extrapolates"].tolist() == [False] * 4 + [True]
    assert any("extrapolated at 1 of 5 sizes (s4)" in w for w in result.warnings)


def test_an_irreducible_loss_is_not_read_as_a_trend():
    """Truth E + A C^-a and a gain of 1.25 at Table 2's compute: separate slopes feign 1.286 to
    1.209, one shape does not.
    """
    compute = COMPUTE / PFLOPS_DAY
    losses = {
        name: list(1.3 + 0.56 * (compute * worth) ** -0.185)
        for name, worth in (("baseline", 1.0), ("new", 1.25))
    }
    result = compute_equivalent_gain(table(losses, compute), "new")
    assert [round(result.at(c).gain, 3) for c in compute[[0, -1]]] == [1.286, 1.209]
    assert result.offset is not None
    assert (result.offset.gain, result.offset.E) == pytest.approx((1.25, 1.3), rel=1e-6)
    # a straight line through the curve's mean slope, uneven sizes
    assert result.gain == pytest.approx(1.25, abs=0.003)
    assert any(
        "irreducible loss 1.3 and the gain 1.250 everywhere fits no worse: do not read a trend" in w
        for w in result.warnings
    )


def test_a_pure_power_law_puts_the_irreducible_loss_at_its_bound():
    """No E is found where there is none, and the summary says so."""
    result = compute_equivalent_gain(curves(lambda c: 3 * c**-0.06, 1.25), "new")
    assert result.offset is not None
    assert abs(result.offset.E) < 1e-9
    assert result.offset.gain == pytest.approx(1.25)


def test_true_unequal_exponents_are_reported_without_that_excuse():
    """Two pure power laws: the parallelism test rejects, and an offset does not explain it."""
    runs = curves(lambda c: 3 * c**-0.05, 1.0)
    runs.loc[runs["variant"] == "new", "val/loss"] = (
        3 * runs.loc[runs["variant"] == "new", "flops"] ** -0.06
    )
    result = compute_equivalent_gain(runs, "new")
    assert result.parallelism.p < 1e-6
    (warning,) = [w for w in result.warnings if "exponents differ" in w]
    assert "do not read" not in warning
    assert "A learning rate that arms or sizes share does that too" in warning


def test_the_summary_opens_with_a_sentence_and_says_when_the_evidence_is_thin():
    """Better, worse, undecided and thin evidence, in words."""
    opening = (
        "block is better: it behaves like baseline given 1.24 times the compute (95 % interval "
        "1.18 to 1.30, 5 sizes). The evidence is thin"
    )
    assert compute_equivalent_gain(table(), "block").summary().startswith(opening)
    assert (
        compute_equivalent_gain(table(), "baseline", "block")
        .summary()
        .startswith("baseline is worse: it behaves like block given 0.81 times")
    )
    three = table()[lambda t: t["size"].isin(["s1", "s2", "s4"])]
    text = compute_equivalent_gain(three, "mhc-lite", "block").summary()
    assert text.startswith("No difference is shown: mhc-lite behaves like block given")
    assert "which includes 1. The evidence is thin: only 3 sizes and one seed per size." in text


def test_the_result_shows_itself_in_a_notebook():
    result = compute_equivalent_gain(table(), "block")
    assert "1.2390" in result._repr_html_()


def test_the_paired_bootstrap_is_that_of_a_loop_over_single_gains():
    """Gains of resampled tables, size by size, against the vectorised form."""
    from analysis.gain.alternatives import resamples

    result = compute_equivalent_gain(table(), "full")
    counts = resamples(5, 200, seed=3)
    drawn = result.bootstrap(200, seed=3)
    x, base, new = (
        result.per_size[c].to_numpy() for c in ("x_baseline", "loss_baseline", "loss_variant")
    )
    for i in np.flatnonzero(np.sum(counts > 0, axis=1) > 1):
        index = np.repeat(np.arange(5), counts[i].astype(int))
        alpha = -np.polyfit(np.log(x[index]), (np.log(base) + np.log(new))[index] / 2, 1)[0]
        assert drawn[i] == pytest.approx(np.exp(np.mean(np.log(base / new)[index]) / alpha))
    assert np.isnan(drawn[np.sum(counts > 0, axis=1) == 1]).all()


def test_ten_thousand_paired_bootstraps_take_less_than_a_tenth_of_a_second():
    """Best of three, draws included; benchmarks/gain_speed.py has the ratio to a loop."""
    result = compute_equivalent_gain(table(), "full")

    def seconds() -> float:
        start = time.perf_counter()
        result.bootstrap(10_000)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.1


def test_the_published_numbers_agree_with_each_other() -> None:
    """The 436M row of Table 2, Table 4 and Fig. 6 give one run in three places."""
    row = paper.table_2().query("size == '436M'").set_index("variant")["val/loss"]
    ablations = paper.table_4().set_index("variant")["val/loss"]
    blocks = paper.figure_6().set_index("block_size")["val/loss"]
    assert row["baseline"] == ablations["baseline"] == 1.766
    assert row["full"] == ablations["Full"] == blocks[1]
    assert row["block"] == ablations["Block, S = 4"] == blocks[4]
    assert row["mhc-lite"] == ablations["mHC"]
    assert paper.figure_7("baseline").min().min() == 1.847
