"""Planning figures against published ones, simulation, and pilot runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import Design, designs, load_runs, pilot, plan, seeds_needed
from analysis.gain.paired import paired_shift

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("sigma", "exclude_one", "five_percent", "tell_apart"),
    [(0.003, 1, 2, 3), (0.005, 1, 3, 5), (0.010, 2, 7, 19), (0.015, 3, 15, 41)],
)
def test_seeds_per_size_with_five_sizes(sigma, exclude_one, five_percent, tell_apart) -> None:
    """Simulated beforehand: 90 % power to exclude 1 at a gain of 1.25, a half-width of 5 %, 80 %
    power for 1.25 against 1.20.
    """
    table = plan(Design(sigma, sizes=2, pool_seeds=True), sizes=(5, 10))
    assert table.loc[5].tolist() == [exclude_one, five_percent, tell_apart]
    assert (table.loc[10] <= table.loc[5]).all()


@pytest.mark.parametrize(
    "study", [Design(0.01, 5), Design(0.01, 5, 3, pool_seeds=True), Design(0.01, 8, 2)]
)
def test_power_is_the_share_of_simulated_studies_that_exclude_one(study) -> None:
    """20,000 studies of paired log differences with Student intervals over pairs, or over size
    means.
    """
    d = 0.057 * np.log(1.2) + np.sqrt(2) * 0.01 / 1.8 * np.random.default_rng(0).normal(
        size=(20_000, study.sizes, study.seeds)
    )
    d = d.reshape(20_000, -1) if study.pool_seeds else d.mean(2)
    p = stats.ttest_1samp(d, 0, axis=1).pvalue
    assert study.power(1.2) == pytest.approx(np.mean(p < 0.05), abs=0.01)


@pytest.mark.parametrize("study", [Design(0.01, 3, 3), Design(0.01, 4, 2), Design(0.005, 5, 3)])
def test_what_is_planned_is_what_the_interval_of_a_gain_does(study) -> None:
    """20,000 studies over 8 times of compute through the estimator itself: share that exclude 1 at
    1.25, and root mean square of the half-width.
    """
    x = np.linspace(0, np.log(8), study.sizes)
    noise = (
        study.sigma
        / study.loss
        / np.sqrt(study.seeds)
        * np.random.default_rng(0).normal(size=(2, 20_000, study.sizes))
    )
    y_b, y_v = -study.alpha * x + noise[0], -study.alpha * (x + np.log(1.25)) + noise[1]
    low, high = paired_shift(
        np.broadcast_to(x, y_b.shape), y_b, np.broadcast_to(x, y_b.shape), y_v
    ).delta()
    assert study.power(1.25) == pytest.approx(np.mean((low > 0) | (high < 0)), abs=0.03)
    assert study.half_width() == pytest.approx(
        np.expm1(np.sqrt(np.mean(((high - low) / 2) ** 2))), rel=0.1
    )


def test_power_against_the_truth_is_the_level() -> None:
    assert Design(0.004, 5).power(1.25, against=1.25) == pytest.approx(0.05, abs=1e-5)


def test_no_number_of_seeds_may_be_enough() -> None:
    assert seeds_needed(Design(0.5, 5), lambda s: s.half_width() <= 0.01, most=50) is None


def pilot_runs(
    sigma, seeds, variants=("baseline", "block8"), sizes=6, rng=0, interaction=0.0, dearer=0.0
):
    """A common effect of size and seed five times the noise, which pairing takes out. At the
    smallest size a variant's runs take exp(dearer) times the compute, at the largest as much as the
    baseline's.
    """
    own = interaction * np.random.default_rng([rng, 1]).normal(size=(len(variants), sizes))
    rng = np.random.default_rng(rng)
    common = 5 * sigma * rng.normal(size=(sizes, seeds))
    rows = []
    for j, v in enumerate(variants):
        for i in range(sizes):
            arm = v != "baseline"
            times = 4.0**i * np.exp(arm * dearer * (1 - i / (sizes - 1)))
            for k in range(seeds):
                away = arm * (own[j, i] - 0.01) + common[i, k] + sigma * rng.normal()
                rows.append((v, f"s{i}", k, 1e18 * times, 2 * times**-0.06 * np.exp(away)))
    return pd.DataFrame(rows, columns=["variant", "size", "seed", "flops", "val/loss"])


@pytest.mark.parametrize("seeds", [1, 4])
def test_the_noise_of_a_pilot_is_the_noise_after_pairing(seeds) -> None:
    """At equal compute: what the variant's runs cost more is neither noise nor gain."""
    studies = [pilot(pilot_runs(0.003, seeds, rng=i, dearer=0.4)) for i in range(16)]
    got = np.sqrt(np.mean([(s.sigma / s.loss) ** 2 for s in studies]))
    assert got == pytest.approx(0.003, rel=0.2)
    assert (studies[0].sizes, studies[0].seeds) == (6, seeds)
    assert np.mean([s.alpha for s in studies]) == pytest.approx(0.06, rel=0.05)


@pytest.mark.parametrize("truth", [0.0, 0.003])
def test_a_pilot_finds_what_a_variant_gains_at_one_size_more_than_at_another(truth) -> None:
    """200 arms over 10 sizes with 3 seeds: the mean square beyond the noise of the seeds."""
    arms = ("baseline", *(f"v{i}" for i in range(20)))
    studies = [
        pilot(pilot_runs(0.002, 3, arms, 10, rng=i, interaction=truth, dearer=0.4))
        for i in range(10)
    ]
    got = np.mean([(s.interaction / s.loss) ** 2 for s in studies])
    assert got == pytest.approx(truth**2, rel=0.15, abs=0.003**2 / 20)
    single = pilot(pilot_runs(0.002, 1, arms, 10, interaction=truth))
    assert single.interaction == 0, "with one seed a size it is part of sigma"
    assert (single.sigma / single.loss) ** 2 == pytest.approx(0.002**2 + truth**2 / 2, rel=0.3)


def test_the_precision_that_a_pilot_foretells_is_that_of_a_record() -> None:
    """Record 029, eight widths with three seeds: gains and upper limits as they stand there."""
    runs = load_runs(ROOT / "docs/results/029-mini/runs.csv")
    runs = runs[runs["size"].isin([f"d{width}-L12" for width in range(12, 41, 4)])]
    found = {"full": (1.137, 1.193), "block8": (1.105, 1.168), "full-h4": (1.125, 1.166)}
    for variant, (gain, high) in found.items():
        study = pilot(runs[runs["variant"].isin(["baseline", variant])])
        assert (study.sizes, study.seeds) == (8, 3)
        assert study.half_width() == pytest.approx(high / gain - 1, rel=0.15), variant


def test_a_pilot_of_the_baseline_alone_gives_the_unpaired_noise() -> None:
    sd = np.sqrt(
        np.mean(
            [
                (s.sigma / s.loss) ** 2
                for s in (pilot(pilot_runs(0.003, 4, ("baseline",), rng=i)) for i in range(16))
            ]
        )
    )
    assert sd == pytest.approx(0.003 * np.sqrt(26), rel=0.2)


def test_a_missing_run_of_a_pilot_leaves_the_other_pairs() -> None:
    table = pilot_runs(0.003, 4)
    assert pilot(table.drop(index=30)).sigma == pytest.approx(pilot(table).sigma, rel=0.3)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pilot_runs(0.003, 2, ("full",)), "no variant 'baseline'; it has full"),
        (pilot_runs(0.003, 1, ("baseline",)), "repeats nothing"),
        (pilot_runs(0.003, 2).assign(flops=0.0), "flops must be positive"),
        (
            pilot_runs(0.003, 2).rename(columns={"val/loss": "loss"}),
            "no column 'val/loss' in the pilot's runs; x and y name",
        ),
    ],
)
def test_a_pilot_that_says_nothing_is_refused(table, message) -> None:
    with pytest.raises(ValueError, match=message):
        pilot(table)


@pytest.mark.parametrize(
    "numbers",
    [
        {"sigma": 0, "sizes": 5},
        {"sigma": 0.01, "sizes": 1},
        {"sigma": 0.01, "sizes": 5, "seeds": 0},
    ],
)
def test_impossible_studies_are_refused(numbers) -> None:
    with pytest.raises(ValueError, match=r"must be positive|at least 2 sizes"):
        Design(**numbers)


def test_a_level_in_per_cent_is_refused() -> None:
    with pytest.raises(ValueError, match="level is 95: give a number between 0 and 1"):
        Design(sigma=0.01, sizes=5).half_width(95)


@pytest.mark.parametrize("interaction", [0.0, 0.005])
def test_many_sizes_with_a_seed_each_are_the_cheapest_design(interaction: float) -> None:
    """STATISTICS: at equal compute 16 x 1 beats 8 x 2, 5 x 3 and 3 x 5, the more so where a variant
    has an effect of its own at each size.
    """
    study = Design(0.01, 5, 3, interaction=interaction)
    shapes = [(16, 1), (8, 2), (5, 3), (3, 5)]
    widths = [replace(study, sizes=k, seeds=n).half_width() for k, n in shapes]
    assert widths == sorted(widths)
    found = designs(study, 0.075, hours=0.5, variants=3)
    best = found.iloc[0]
    assert (best["seeds"], best["runs"]) == (1, 3 * best["sizes"])
    assert best["sizes"] >= 16
    # a tuned cell costs its tuning runs once, so fewer sizes with more seeds can be cheaper
    tuned = designs(study, 0.075, hours=0.5, variants=3, tuning=4).iloc[0]
    assert tuned["sizes"] < best["sizes"]
    assert tuned["tuning_runs"] == 12 * tuned["sizes"]
    assert tuned["device_hours"] == (tuned["runs"] + tuned["tuning_runs"]) / 2
    assert (found["half_width"] <= 0.075).all()
    assert found["device_hours"].is_monotonic_increasing
    free = designs(study, 0.075, hours=0.0, variants=3)  # of runs that have no times
    assert list(free["runs"]) == list(found["runs"])
    assert designs(Design(0.01, 5, interaction=1.0), 0.01).empty


def test_an_interaction_is_an_error_that_seeds_do_not_average_out() -> None:
    """20,000 simulated studies: the sd of the mean difference of log loss over alpha."""
    rng, study = np.random.default_rng(0), Design(0.01, 6, 3, interaction=0.008)
    noise = np.sqrt(2) * 0.01 * rng.normal(size=(20_000, 6, 3))
    own = 0.008 * rng.normal(size=(20_000, 6, 1))
    gains = (noise + own).mean((1, 2)) / (study.loss * study.alpha)
    assert study.log_error == pytest.approx(gains.std(), rel=0.02)
    assert replace(study, seeds=1000).log_error > 0.65 * study.log_error


def test_runs_that_did_not_finish_are_no_noise_of_a_pilot() -> None:
    runs = pilot_runs(0.004, 2)
    killed = runs.iloc[[0]].assign(seed=9, status="KILLED", **{"val/loss": 9.0})
    every = pd.concat([runs.assign(status="finished"), killed])
    assert pilot(every) == pilot(runs) == pilot(runs.convert_dtypes())
    with pytest.raises(ValueError, match="several runs of variant baseline, size"):
        pilot(pd.concat([runs, runs.iloc[[0]]]))
