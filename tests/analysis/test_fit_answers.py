"""A fit says how it knows, refuses rows that cannot be fitted, and answers for itself."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
from analysis_helpers import noisy

from analysis import CHINCHILLA, POWER_LAW, POWER_LAW_OFFSET, fit
from analysis.fits.solve import starts


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            [1, 2, 3, 4],
            [3, np.nan, 1, np.inf],
            r"y must be positive and finite, but is nan at rows 1, 3 \(counted from 0\)",
        ),
        ([1, 2, 3, 4], [3, 0, 1, 1], "y .* is 0 at row 1"),
        ([1, -2, 3, 4], [3, 2, 1, 1], r"x \(C\) .* is -2 at row 1"),
        ([5, 5, 5, 5], [3, 2, 1, 1], r"x \(C\) is 5 in every row"),
        (
            [1, 2, 2, 1],
            [3, 2, 2, 3],
            "3 parameters and needs as many different x, but the rows have only 2",
        ),
        ([1, 2, 3], [3, 2], "one y, and one weight and sigma, per row"),
        ([[1, 2], [3, 4]], [3, 2], "one column for each of C"),
    ],
)
def test_bad_rows_are_refused_and_named(x, y, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fit(POWER_LAW_OFFSET, x, y)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1, -1, 1, 1]}, "weights must be .* row 1"),
        ({"weights": [1, 0, 0, 0]}, "in every row"),
        ({"weights": [0, 0, 0, 0]}, "have only 0"),
        ({"loss": "l1"}, "valid: 'log_mse', 'mse', 'huber'"),
        ({"loss": "huber", "delta": 0}, "positive threshold"),
    ],
)
def test_bad_options_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit(POWER_LAW_OFFSET, [1, 2, 3, 4], [4, 3, 2.5, 2.2], **options)


def test_soft_trouble_is_a_status_with_a_reason() -> None:
    c = np.geomspace(1, 1e4, 9)
    # bends down: no irreducible loss
    at_bound = fit(POWER_LAW_OFFSET, c, 2 * c**-0.1 * np.exp(-0.002 * np.log(c) ** 2))
    assert at_bound.status == "at_bound"
    assert at_bound.params["E"] == 0
    assert "E is at a bound (0)" in at_bound.warnings
    assert at_bound.interval(method="profile")["E"][0] == 0
    flat = fit(POWER_LAW_OFFSET, c, 2 + 0.01 * np.random.default_rng(0).normal(size=9))
    assert flat.status == "not_identified"
    assert any("alpha is not identified" in warning for warning in flat.warnings)
    constant = fit(POWER_LAW_OFFSET, c, np.full(9, 2.0))
    assert constant.status == "not_identified"
    assert any("the term of A is zero" in warning for warning in constant.warnings)
    together = fit(
        CHINCHILLA,
        np.c_[c, 20 * c],
        CHINCHILLA(np.c_[c, 20 * c], E=1.5, A=1, alpha=0.3, B=1, beta=0.2),
    )
    assert together.status == "not_identified"
    assert any("N and D move together" in warning for warning in together.warnings)
    exact = fit(POWER_LAW_OFFSET, c[:3], 1 + c[:3] ** -0.3)
    assert any("intervals are unbounded" in warning for warning in exact.warnings)
    assert exact.interval()["alpha"] == (-np.inf, np.inf)


def test_the_certificate_of_a_good_fit() -> None:
    x, y = noisy(2)
    certificate = fit(CHINCHILLA, x, y, loss="huber").certificate
    assert certificate.converged
    assert certificate.moved
    assert certificate.restarts_agree
    assert certificate.bounds_hit == ()
    assert certificate.gradient_norm < 1e-8


def test_the_restarts_start_apart() -> None:
    """Agreement of restarts means something: they come from separate cells of the grid of
    exponents.
    """
    x, y = noisy(2)
    first = starts(fit(CHINCHILLA, x, y).function, np.ones(len(y)))[:, 3:]
    distances = np.abs(np.log(first[:, None] / first[None])).max(2)
    assert np.min(distances + 9 * np.eye(len(first))) > 0.3


def test_a_fit_is_frozen_and_answers() -> None:
    c = np.geomspace(1e18, 1e21, 8)
    got = fit(POWER_LAW, c, 20 * c**-0.05 * np.exp(0.002 * np.random.default_rng(0).normal(size=8)))
    np.testing.assert_allclose(got.residuals, np.log(got.y) - np.log(got.predict(c)))
    low, high = got.band([1e22])
    assert low < got.predict([1e22]) < high
    assert "A C^-alpha" in got.summary()
    assert got.summary() in got._repr_html_()
    assert json.loads(json.dumps(got.to_dict()))["params"]["alpha"] == got.params["alpha"]
    assert pickle.loads(pickle.dumps(got)).summary() == got.summary()
    with pytest.raises(AttributeError):
        got.status = "converged"
    with pytest.raises(TypeError):
        got.params["A"] = 1.0
    with pytest.raises(ValueError, match="level is 95"):
        got.interval(95)
    with pytest.raises(ValueError, match="valid: 'delta-t'"):
        got.interval(method="wald")


@pytest.mark.parametrize("law", [POWER_LAW_OFFSET, CHINCHILLA], ids=lambda law: law.formula)
def test_a_fit_draws_itself(law) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    x, y = noisy(0, rows=2)
    ax = fit(law, x[:, : len(law.variables)], y).plot()
    assert ax.get_xscale() == ax.get_yscale() == "log"
    plt.close(ax.figure)


def test_columns_that_know_missing_values_are_numbers() -> None:
    x, y = pd.Series([1.0, 2.0, 4.0, 8.0]), pd.Series([2.0, 1.9, 1.8, 1.7])
    plain = fit(POWER_LAW, x, y).params
    assert fit(POWER_LAW, x.convert_dtypes(), y.astype("Float64")).params == plain
    with pytest.raises(ValueError, match="y must be positive and finite, but is nan at row 2"):
        fit(POWER_LAW, x, y.astype("Float64").where(y.index != 2))
