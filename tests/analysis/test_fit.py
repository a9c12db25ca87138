"""Fits reach the optimum, say how they know, and refuse what cannot be fitted."""

import json
import pickle

import numpy as np
import pytest
from scipy import optimize, stats

from analysis import CHINCHILLA, POWER_LAW, POWER_LAW_OFFSET, Law, fit
from analysis.fits.solve import starts

# Attention Residuals (2603.15031), Table 2: active parameters, tokens, losses.
PARAMS = np.array([194, 241, 296, 436, 528]) * 1e6
TOKENS = np.array([38.7, 45.4, 62.1, 87.9, 119.0]) * 1e9
PFLOPS_DAYS = 6 * PARAMS * TOKENS / 8.64e19
LOSSES = {
    "baseline": [1.931, 1.895, 1.829, 1.766, 1.719],
    "block": [1.909, 1.875, 1.809, 1.746, 1.693],
    "full": [1.899, 1.874, 1.804, 1.737, 1.692],
    "mhc-lite": [1.906, 1.869, 1.807, 1.747, 1.694],
}


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


def noisy(seed, rows=15, sigma=0.01):
    """A grid of rows x 16 sizes and tokens, and losses with heavy-tailed noise."""
    rng = np.random.default_rng(seed)
    x = np.array(
        [(n, d) for n in np.geomspace(5e7, 1e10, 16) for d in np.geomspace(1e9, 5e11, rows)]
    )
    return x, CHINCHILLA(x, E=1.82, A=478, alpha=0.347, B=2143, beta=0.367) * np.exp(
        sigma * rng.standard_t(3, len(x))
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
