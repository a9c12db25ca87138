"""The vectorised bootstrap refits every resample to its own optimum."""

import numpy as np
import pytest
from analysis_helpers import noisy
from scipy import stats

from analysis import CHINCHILLA, POWER_LAW, bootstrap, fit


@pytest.mark.parametrize("loss", ["huber", "log_mse"])
@pytest.mark.parametrize("sigma", [0.001, 0.01, 0.05])
def test_resamples_end_where_single_fits_end(loss, sigma) -> None:
    x, y = noisy(0, sigma=sigma)
    many = bootstrap(fit(CHINCHILLA, x, y, loss=loss), n=300, seed=7)
    counts = np.random.default_rng(7).multinomial(240, np.full(240, 1 / 240), size=300)
    assert many.failed == 0
    for i in range(0, 300, 30):
        single = fit(CHINCHILLA, x, y, loss=loss, weights=counts[i])
        assert many.objective[i] == pytest.approx(single.objective, rel=1e-8)
        for name, value in single.params.items():
            assert many.params[name][i] == pytest.approx(value, rel=1e-5)


def test_equal_seeds_give_equal_resamples() -> None:
    x, y = noisy(0)
    once, again, other = (bootstrap(fit(CHINCHILLA, x, y), n=200, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(once.params["E"], again.params["E"])
    assert not np.array_equal(once.params["E"], other.params["E"])


def test_percentiles_agree_with_scipy_for_a_line() -> None:
    """Many rows of a log-log line: scipy's case bootstrap of the slope gives the same percentile
    interval up to simulation noise.
    """
    rng = np.random.default_rng(0)
    log_c = rng.uniform(0, 5, 60)
    log_y = 1 - 0.1 * log_c + 0.02 * rng.normal(size=60)
    ours = fit(POWER_LAW, np.exp(log_c), np.exp(log_y)).interval(method="bootstrap")["alpha"]

    def slope(a, b, axis):
        centred = a - a.mean(axis, keepdims=True)
        return -(centred * b).sum(axis) / (centred**2).sum(axis)

    theirs = stats.bootstrap(
        (log_c, log_y), slope, paired=True, n_resamples=4000, method="percentile", rng=rng
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.15 * (theirs.high - theirs.low))


def test_a_resample_that_cannot_be_fitted_is_counted() -> None:
    """Two of the rows hold a line; resamples that miss one of them have no slope."""
    c = np.array([1.0, 10.0, 100.0])
    many = bootstrap(fit(POWER_LAW, c, [3.0, 2.0, 1.4]), n=500)
    one_size = np.isnan(many.params["alpha"])
    assert many.failed == one_size.sum()
    # three of the 27 equally likely resamples are of one row only
    assert abs(many.failed / 500 - 3 / 27) < 0.05


def test_no_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        bootstrap(fit(POWER_LAW, [1, 2, 3], [3, 2, 1.5]), n=0)
