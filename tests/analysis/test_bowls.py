"""Bowls of finished tables against worlds whose best values and laws are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import compute_equivalent_gain
from analysis.tuning import bowls, spread_of_runs, vertex_error

RATES = (3e-3, 6e-3, 1.2e-2, 2.4e-2, 4.8e-2)
ALPHA, GAIN = 0.06, 1.25


def world(
    sigma: float = 0.0, seeds: int = 1, rates: tuple[float, ...] = RATES, seed: int = 0
) -> pd.DataFrame:
    """Power laws of the minima, best rate falling as the root of the parameters, the variant's a
    third lower; curvature .02 nats per octave squared.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for place, params in enumerate((1e4, 2e4, 4e4, 8e4, 1.6e5)):
        flops = 1e12 * 4.0**place
        for variant, gain, shift in (("baseline", 1.0, 1.0), ("full", GAIN, 2 / 3)):
            best = 0.015 * shift * (1e4 / params) ** 0.2
            for rate in rates:
                for run in range(seeds):
                    loss = 15 * (flops * gain) ** -ALPHA + 0.02 * np.log2(rate / best) ** 2
                    row = {"variant": variant, "size": f"s{place}", "seed": run, "flops": flops}
                    row |= {"optim.lr": rate, "params": params}
                    rows.append(row | {"val/loss": loss + sigma * rng.normal()})
    return pd.DataFrame(rows)


def test_without_noise_best_value_minimum_curvature_and_law_are_exact() -> None:
    found = bowls(world(), "optim.lr")
    base = found.rows[found.rows["variant"] == "baseline"]
    assert base["best"].to_numpy() == pytest.approx(0.015 * 2.0 ** (-0.2 * np.arange(5)))
    assert set(found.rows["kind"]) == {"vertex"}
    assert found.rows["curvature"].to_numpy() == pytest.approx(0.02)
    law = found.law()
    assert law["exponent"].to_numpy() == pytest.approx([-0.2, -0.2])
    assert law["stderr"].to_numpy() == pytest.approx(0, abs=1e-9)


def test_the_gain_at_the_minima_is_the_true_one_where_a_shared_rate_is_wrong() -> None:
    runs = world()
    assert compute_equivalent_gain(bowls(runs, "optim.lr").minima, "full").gain == pytest.approx(
        GAIN
    )
    shared = runs[runs["optim.lr"] == 2.4e-2]
    assert compute_equivalent_gain(shared, "full").gain < 1.2


def test_the_error_of_a_vertex_is_that_of_many_draws() -> None:
    rng = np.random.default_rng(1)
    x, sigma = np.log2([1.0, 2.0, 5.0]), np.array([0.002, 0.001, 0.003])
    truth = 2 + 0.05 * (x - 1.2) ** 2
    draws = truth + sigma * rng.normal(size=(20_000, 3))
    slopes = np.polynomial.polynomial.polyfit(x, draws.T, 2)
    measured = np.std(-slopes[1] / (2 * slopes[2]))
    assert vertex_error(x, truth, sigma) == pytest.approx(measured, rel=0.03)


def test_the_debt_is_the_published_formula_about_the_middle_of_equal_steps() -> None:
    sigma, curvature = 0.01, 0.02
    y = 2 + curvature * np.array([1.0, 0.0, 1.0])
    error = vertex_error(np.array([-1.0, 0.0, 1.0]), y, np.full(3, sigma))
    assert curvature * error**2 == pytest.approx(sigma**2 / (8 * curvature))


def test_noise_comes_from_repeated_runs_and_seeds_narrow_the_error() -> None:
    runs = world(sigma=0.003, seeds=4)
    assert spread_of_runs(runs, ["variant", "size", "optim.lr"]) == pytest.approx(0.003, rel=0.2)
    four, one = bowls(runs, "optim.lr"), bowls(runs[runs["seed"] == 0], "optim.lr", sigma=0.003)
    assert four.rows["error"].median() == pytest.approx(one.rows["error"].median() / 2, rel=0.3)
    unknown = bowls(runs[runs["seed"] == 0], "optim.lr")
    assert unknown.rows["error"].isna().all(), "one run each says nothing of its noise"
    assert unknown.rows["best"].notna().all()


def test_edges_and_values_that_diverge_are_said() -> None:
    edge = bowls(world(rates=(2.4e-2, 4.8e-2, 9.6e-2)), "optim.lr")
    assert set(edge.rows["kind"]) == {"edge"}
    assert edge.law().empty, "an edge is no best value"
    runs = world().assign(status="finished")
    high = runs["optim.lr"] > 1.2e-2
    diverged = runs.assign(status=np.where(high, "diverged", "finished"))
    rows = bowls(diverged, "optim.lr").rows
    assert rows.loc[rows["kind"] == "neighbour", "best"].unique() == pytest.approx([1.2e-2])
    assert set(rows["kind"]) == {"neighbour", "vertex"}
    nothing = bowls(runs.assign(status="diverged"), "optim.lr")
    assert set(nothing.rows["kind"]) == {"none"}
    assert nothing.minima.empty


def test_a_table_of_ones_own_may_have_numbers_for_sizes_and_an_index_that_repeats() -> None:
    """As tables laid one under the other have it: the same as the plain one."""
    runs = world()
    plain = bowls(runs, "optim.lr")
    numbered = runs.assign(size=runs["size"].str[1:].astype(int), loss=runs.pop("val/loss"))
    parts = [part.reset_index(drop=True) for _, part in numbered.groupby("optim.lr")]
    found = bowls(pd.concat(parts), "optim.lr", y="loss")
    assert sorted(found.rows["best"]) == pytest.approx(sorted(plain.rows["best"]))
    assert found.minima["size"].tolist() == found.rows["size"].tolist()
    gain = compute_equivalent_gain(found.minima, "full", y="loss")
    assert gain.gain == pytest.approx(GAIN)
    assert gain.per_size["size"].tolist() == [0, 1, 2, 3, 4]
    assert list(found.law("flops")) == list(plain.law()) == list(found.law("params"))
    with pytest.raises(ValueError, match="no column 'width' of numbers"):
        found.law("width")


def test_what_cannot_be_a_bowl_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no column 'optim.rl' in these runs"):
        bowls(world(), "optim.rl")
    with pytest.raises(ValueError, match=r"column 'optim.lr': 0.0: only positive values"):
        bowls(world().replace({"optim.lr": {3e-3: 0.0}}), "optim.lr")


def test_no_run_is_dropped_in_silence() -> None:
    runs = world()
    once = bowls(runs, "optim.lr").rows
    shown = bowls(runs.assign(status=[None, *["FINISHED"] * (len(runs) - 1)]), "optim.lr").rows
    pd.testing.assert_frame_equal(once, shown)
    for change, message in (
        ({"status": "done"}, "unknown status done"),
        ({"size": [None, *runs["size"][1:]]}, "row 0: size is empty"),
        ({"optim.lr": runs["optim.lr"].astype(str)}, "'optim.lr' is not numeric"),
    ):
        with pytest.raises(ValueError, match=message):
            bowls(runs.assign(**change), "optim.lr")


def test_minima_hold_no_loss_but_their_own() -> None:
    """Another unit of the runs' loss contradicts the parabola's lowest, and the gain refuses it."""
    runs = world(rates=(2e-3, 1.6e-2, 0.128))
    runs["val/bpb"] = runs["val/loss"] / np.log(2)
    gain = compute_equivalent_gain(bowls(runs, "optim.lr").minima, "full")
    assert gain.gain == pytest.approx(GAIN)


def test_minima_are_refused_where_their_runs_would_be() -> None:
    runs = world()
    data = np.where(runs["variant"] == "full", "b", "a")
    found = bowls(runs.assign(data_fingerprint=data), "optim.lr")
    with pytest.raises(ValueError, match="runs of different data"):
        compute_equivalent_gain(found.minima, "full")
    mixed = np.where(runs["optim.lr"] == runs["optim.lr"].min(), "bits", "nats")
    with pytest.raises(ValueError, match="'loss_unit' holds several values in a cell"):
        bowls(runs.assign(loss_unit=mixed), "optim.lr")


def test_every_label_but_the_size_has_a_law_of_its_own() -> None:
    """Of two numbers of heads, the second with twice the rates; and of one variant alone."""
    runs = world()
    twice = runs.assign(heads=2, **{"optim.lr": 2 * runs["optim.lr"]})
    both = pd.concat([runs.assign(heads=1), twice])
    found = bowls(both, "optim.lr", labels=("variant", "heads", "size")).law("flops")
    own = bowls(runs, "optim.lr").law("flops")
    for _, part in found.groupby("heads"):
        assert part["exponent"].to_numpy() == pytest.approx(own["exponent"].to_numpy())
    one = runs[runs["variant"] == "full"]
    alone = bowls(one, "optim.lr", labels=("size",)).law("flops")
    assert alone["exponent"].tolist() == pytest.approx(own.query("variant == 'full'")["exponent"])
