"""Fits reach the optimum of their objective, and their intervals are those of the theory."""

import numpy as np
import pytest
from analysis_helpers import COMPUTE, LOSSES, PFLOPS_DAY, noisy
from scipy import optimize, stats

from analysis import CHINCHILLA, POWER_LAW, POWER_LAW_OFFSET, Law, fit

PFLOPS_DAYS = COMPUTE / PFLOPS_DAY


@pytest.mark.parametrize(
    ("variant", "printed"),
    [
        ("baseline", "1.8622 C^-0.05494"),
        ("block", "1.8411 C^-0.05650"),
        ("full", "1.8354 C^-0.05583"),
        ("mhc-lite", "1.838 C^-0.0549"),
    ],
)
def test_the_laws_of_table_2_to_every_printed_digit(variant, printed) -> None:
    params = fit(POWER_LAW, PFLOPS_DAYS, LOSSES[variant]).params
    digits = (3, 4) if variant == "mhc-lite" else (4, 5)
    assert f"{params['A']:.{digits[0]}f} C^-{params['alpha']:.{digits[1]}f}" == printed


def test_a_power_law_agrees_with_linear_regression_of_the_logs() -> None:
    """Estimates and Student intervals of the log-log line, from scipy's closed form, also with C in
    raw FLOPs.
    """
    line = stats.linregress(np.log(PFLOPS_DAYS), np.log(LOSSES["baseline"]))
    got = fit(POWER_LAW, PFLOPS_DAYS * 8.64e19, LOSSES["baseline"])
    half = stats.t.ppf(0.975, 3) * line.stderr
    np.testing.assert_allclose(got.params["alpha"], -line.slope, rtol=1e-9)
    np.testing.assert_allclose(
        got.interval()["alpha"], (-line.slope - half, -line.slope + half), rtol=1e-7
    )
    # a linear model: profile is exact
    np.testing.assert_allclose(
        got.interval(method="profile")["alpha"], got.interval()["alpha"], rtol=1e-4
    )
    scaled = fit(POWER_LAW, PFLOPS_DAYS, LOSSES["baseline"])
    half = stats.t.ppf(0.95, 3) * line.intercept_stderr
    np.testing.assert_allclose(
        scaled.interval(0.9)["A"], np.exp([line.intercept - half, line.intercept + half]), rtol=1e-7
    )


def huber_sum(log_point, x, y, delta=1e-3):
    """Hoffmann et al.'s objective and gradient, written on its own: parameters (log E, log A, log
    B, alpha, beta).
    """
    e, a, b, alpha, beta = log_point
    parts = np.array([np.full(len(y), e), a - alpha * np.log(x[:, 0]), b - beta * np.log(x[:, 1])])
    top = parts.max(0)
    share = np.exp(parts - top)
    model = top + np.log(share.sum(0))
    share /= share.sum(0)
    r = model - np.log(y)
    psi = np.clip(r, -delta, delta)
    by = psi * share
    return np.sum(psi * (r - psi / 2)), np.array(
        [by[0].sum(), by[1].sum(), by[2].sum(), -by[1] @ np.log(x[:, 0]), -by[2] @ np.log(x[:, 1])]
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_huber_is_at_or_below_any_of_200_random_start_scipy_runs(seed) -> None:
    x, y = noisy(seed, rows=5)
    ours = fit(CHINCHILLA, x, y, loss="huber")
    point = [
        np.log(ours.params["E"]),
        np.log(ours.params["A"]),
        np.log(ours.params["B"]),
        ours.params["alpha"],
        ours.params["beta"],
    ]
    # the plain sum over rows
    np.testing.assert_allclose(huber_sum(point, x, y)[0], ours.objective, rtol=1e-10)
    rng = np.random.default_rng(seed)
    # the range of the published grid of starts
    low, high = (
        np.array([-1, 0, 0, 0, 0]),
        np.array([1.5, 25, 25, 2, 2]),
    )
    theirs = [
        optimize.minimize(
            huber_sum,
            rng.uniform(low, high),
            (x, y),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 500},
        ).fun
        for _ in range(200)
    ]
    assert ours.objective <= min(theirs) * (1 + 1e-9)
    assert min(theirs) < ours.objective * 1.01  # scipy does get there: the comparison has teeth


def test_graduated_thresholds_lead_the_restarts_to_one_optimum() -> None:
    """With noise 50 times delta, a tenth of the restarts would stop in other minima of the final
    objective; one in 160 does, and a few of the 60 that go straight to the wanted threshold.
    """
    lost = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = np.c_[10 ** rng.uniform(7.5, 10, 60), 10 ** rng.uniform(9, 11.5, 60)]
        y = CHINCHILLA(x, E=1.82, A=478, alpha=0.347, B=2143, beta=0.367) * np.exp(
            0.05 * rng.standard_t(3, 60)
        )
        certificate = fit(CHINCHILLA, x, y, loss="huber").certificate
        lost += certificate.restarts - certificate.agreeing
    assert lost <= 6


@pytest.mark.parametrize("loss", ["log_mse", "mse", "huber"])
@pytest.mark.parametrize(
    "law", [CHINCHILLA, Law("E + A N^-a D^-b + B D^-b")], ids=lambda law: law.formula
)
def test_gradient_and_hessian_against_finite_differences(law, loss) -> None:
    x, y = noisy(3, rows=3)
    function = fit(law, x, y, loss=loss, delta=0.01).function
    weights = np.random.default_rng(0).uniform(0, 2, (1, len(y)))
    point = np.array([0.5, 0.3, 0.25, 0.41, 0.29])
    value, gradient, hessian, _ = function.evaluate(point[None], weights)
    numeric = optimize.approx_fprime(
        point, lambda p: function.evaluate(p[None], weights)[0][0], 1e-7
    )
    np.testing.assert_allclose(gradient[0], numeric, rtol=2e-5, atol=2e-5 * np.abs(numeric).max())
    numeric = optimize.approx_fprime(
        point, lambda p: function.evaluate(p[None], weights)[1][0], 1e-7
    )
    np.testing.assert_allclose(hessian[0], numeric, rtol=2e-5, atol=2e-5 * np.abs(numeric).max())
    assert value > 0


@pytest.mark.parametrize("loss", ["log_mse", "mse", "huber"])
def test_a_weight_of_two_is_the_row_twice(loss) -> None:
    """Weights are multiplicities in the optimum, the objective and every interval; a weight of zero
    is no row.
    """
    x, y = noisy(5, rows=3)
    times = np.random.default_rng(1).integers(0, 4, len(y))
    once = fit(CHINCHILLA, x, y, loss=loss, weights=times)
    repeated = fit(CHINCHILLA, np.repeat(x, times, axis=0), np.repeat(y, times), loss=loss)
    assert once.objective == pytest.approx(repeated.objective, rel=1e-9)
    for method in ("delta-t", "profile"):
        got, expected = once.interval(method=method), repeated.interval(method=method)
        np.testing.assert_allclose(
            [got[name] for name in expected], list(expected.values()), rtol=1e-4
        )


def test_the_profile_interval_is_where_the_constrained_optimum_passes_the_cut() -> None:
    """With E fixed at the limit the rest is refitted by scipy, and 2 (f - f_min) / s^2 is t^2."""
    x = np.geomspace(1, 1e4, 12)
    y = POWER_LAW_OFFSET(x, E=1.5, A=1.0, alpha=0.3) * np.exp(
        0.01 * np.random.default_rng(4).normal(size=12)
    )
    got = fit(POWER_LAW_OFFSET, x, y)
    variance = np.sum(got.residuals**2) / 9
    for e in got.interval(method="profile")["E"]:
        rest = optimize.least_squares(
            lambda p, e=e: np.log(e + np.exp(p[0]) * x ** -p[1]) - np.log(y),
            [0.0, 0.3],
            xtol=1e-14,
            ftol=1e-14,
        )
        assert (2 * rest.cost - np.sum(got.residuals**2)) / variance == pytest.approx(
            stats.t.ppf(0.975, 9) ** 2, rel=1e-4
        )


@pytest.mark.parametrize(
    "y",
    [
        2 * np.arange(1, 9) ** -0.3 + 1,
        [3, 3, 3, 3, 3, 3, 3, 2],
        range(1, 9),
        [2] * 8,
        [3, 2.5, 2.2, 2, 1.9, 1.9, 1.9, 1.9],
    ],
)
def test_profile_intervals_hold_the_estimate_whatever_the_data(y) -> None:
    """Noise-free, stepped, rising, constant and saturated losses: no crash, and every interval
    holds its estimate up to rounding.
    """
    got = fit(POWER_LAW_OFFSET, np.arange(1, 9) * 1e18, y)
    for name, (low, high) in got.interval(method="profile").items():
        assert low * (1 - 1e-6) <= got.params[name] <= high * (1 + 1e-6)


def test_delta_intervals_hold_their_level_for_the_offset_law() -> None:
    """Nominal 90 % intervals of E hold E in 83 to 97 % of 120 simulated studies."""
    x, rng = np.geomspace(1, 1e4, 12), np.random.default_rng(0)
    truth = POWER_LAW_OFFSET(x, E=1.5, A=1.0, alpha=0.3)
    limits = np.array(
        [
            fit(POWER_LAW_OFFSET, x, truth * np.exp(0.005 * rng.normal(size=12))).interval(0.9)["E"]
            for _ in range(120)
        ]
    )
    assert 0.83 < np.mean((limits[:, 0] < 1.5) & (limits[:, 1] > 1.5)) < 0.97
