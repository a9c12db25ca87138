"""Covariances of a fit and the intervals they give by the delta method with Student t."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import exp
from math import log as ln
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit  # scipy.stats takes half a second to import

from analysis.fits.fitted import Fitted
from analysis.fits.laws import Array

Limits = dict[str, tuple[float, float]]


def check_level(level: float) -> None:
    """Raise ValueError for a level of an interval that is not between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a number between 0 and 1, such as 0.95")


def quantile(freedom: float, level: float = 0.95) -> float:
    """Student's two-sided quantile; infinite without degrees of freedom. Raises ValueError for a
    level outside (0, 1).
    """
    check_level(level)
    return float(stdtrit(freedom, (1 + level) / 2)) if freedom > 0 else np.inf


class Derived(NamedTuple):
    """A function of a fit's parameters, its standard error (of its logarithm where ``log`` was
    asked for) and its interval.
    """

    value: float
    stderr: float
    interval: tuple[float, float]


def on_own_scale(fit: Fitted) -> dict[str, bool]:
    """Whether a parameter's interval is made on its own scale (exponents, constants) and not on the
    log scale.
    """
    constant = ~np.any(fit.law.design, axis=(1, 2))
    own = dict(zip(fit.law.coefficients, constant, strict=True)) | dict.fromkeys(
        fit.law.exponents, True
    )
    return {name: bool(own[name]) for name in fit.law.params}


def _slopes(fit: Fitted, x: Array) -> Array:
    """Derivatives (n, P) of log prediction by the parameters: by log coefficient for powers, by the
    coefficient itself for a constant.
    """
    law, linear = fit.law, on_own_scale(fit)
    coefficients = np.array([fit.params[c] for c in law.coefficients])
    directions = np.einsum("kvp,nv->nkp", law.design, np.log(x))
    basis = np.exp(directions @ np.array([fit.params[e] for e in law.exponents]))
    parts = coefficients * basis
    own = np.where([linear[c] for c in law.coefficients], basis, parts)
    by_name = dict(
        zip(
            [*law.coefficients, *law.exponents],
            np.c_[own, np.einsum("nk,nkp->np", parts, directions)].T,
            strict=True,
        )
    )
    slopes: Array = np.array([by_name[name] for name in law.params]).T / parts.sum(1, keepdims=True)
    return slopes


def _scores(fit: Fitted) -> tuple[Array, float]:
    """Derivative of each row's loss by its residual over sigma, and the mean curvature (Huber and
    Ronchetti, Robust Statistics, section 7.6; 1 for least squares).
    """
    residual, delta = fit.residuals / fit.rows.sigma, fit.loss.threshold
    curvature = float(np.average(np.abs(residual) <= delta, weights=fit.weights))
    return np.clip(residual, -delta, delta), max(curvature, 1e-150)


def noise(fit: Fitted) -> tuple[float, float]:
    """Variance of the scores and mean curvature of the loss; (s^2, 1) for least squares."""
    score, curvature = _scores(fit)
    return float(np.sum(fit.weights * score**2)) / max(fit.freedom, 1e-300), curvature


def covariance(fit: Fitted, robust: bool = False) -> Array:
    """(P, P) in the order of ``fit.params``, coefficients of powers on the log scale; zero for
    fixed parameters, infinite where the data do not identify the others.

    ``robust``: the sandwich for rows of unequal variance, each score over 1 - its leverage (HC3;
    MacKinnon and White 1985).
    """
    free = np.array([name not in fit.fixed for name in fit.law.params])
    slopes = _slopes(fit, fit.x)[:, free] / fit.rows.sigma[:, None]
    slopes = slopes if fit.loss.log else slopes * fit.predict(fit.x)[:, None]
    weighted = slopes * np.sqrt(fit.weights)[:, None]
    scale, result = np.linalg.norm(weighted, axis=0), np.zeros((len(free), len(free)))
    if not (scale > 0).all() or np.linalg.cond(weighted / scale) > 1e10:
        result[np.ix_(free, free)] = np.inf
        return result
    root = np.linalg.inv(np.linalg.qr(weighted / scale, mode="r")) / scale[:, None]
    variance, curvature = noise(fit)
    inner = root @ root.T * variance
    if robust:
        leverage = np.minimum(np.sum((slopes @ root) ** 2, axis=1), 1 - 1e-12)
        each = weighted * (_scores(fit)[0] / (1 - leverage))[:, None]
        inner = root @ (root.T @ each.T @ each @ root) @ root.T
    result[np.ix_(free, free)] = inner / curvature**2
    return result


def reach(fit: Fitted, level: float = 0.95, robust: bool = False) -> dict[str, float]:
    """Half-widths by Student t, on the log scale for coefficients of powers; infinite where nothing
    is known.
    """
    with np.errstate(invalid="ignore"):
        half = quantile(fit.freedom, level) * np.sqrt(np.diag(covariance(fit, robust)))
    half = np.nan_to_num(half, nan=np.inf, posinf=np.inf)
    half[[name in fit.fixed for name in fit.law.params]] = 0.0
    return dict(zip(fit.law.params, half.tolist(), strict=True))


def delta_t(fit: Fitted, level: float, robust: bool = False) -> Limits:
    """Wald intervals with Student t."""
    limits, linear = {}, on_own_scale(fit)
    for name, half in reach(fit, level, robust).items():
        value = fit.params[name]
        if linear[name]:
            low = value - half if name in fit.law.exponents else max(0.0, value - half)
            limits[name] = (low, value + half)
        else:
            with np.errstate(over="ignore"):
                high = float(value * np.exp(half)) if value else np.inf
                limits[name] = (float(value * np.exp(-half)), high)
    return limits


def band(fit: Fitted, x: ArrayLike, level: float, new_row: bool = False) -> tuple[Array, Array]:
    """Limits of the law at x, or of one more row there."""
    slopes, predicted = _slopes(fit, fit.law.columns(x)), fit.predict(x)
    with np.errstate(invalid="ignore", over="ignore"):
        variance = np.einsum("np,pq,nq->n", slopes, covariance(fit), slopes)
        if new_row:
            spread = np.sum(fit.weights * fit.residuals**2) / max(fit.freedom, 1e-300)
            variance = variance + spread / (1.0 if fit.loss.log else predicted**2)
        half = quantile(fit.freedom, level) * np.sqrt(np.maximum(variance, 0))
        factor = np.exp(np.nan_to_num(half, nan=np.inf, posinf=np.inf))
    return predicted / factor, predicted * factor


def drawn_band(
    fit: Fitted, draws: Mapping[str, Array], x: ArrayLike, level: float, new_row: bool = False
) -> tuple[Array, Array]:
    """The same as percentiles of refits, ``draws`` of each parameter, (n,); one more row has the
    residual of a row of the fit.
    """
    rows = np.stack([draws[name] for name in fit.law.params], axis=1)
    rows = rows[np.isfinite(rows).all(axis=1)]
    laws = np.array([fit.law(x, **dict(zip(fit.law.params, row, strict=True))) for row in rows])
    if new_row:
        share = fit.weights / fit.weights.sum()
        spread = np.sqrt(fit.weights.sum() / fit.freedom)  # what the fit took from the residuals
        some = spread * np.random.default_rng(0).choice(fit.residuals, laws.shape, p=share)
        laws = laws * np.exp(some) if fit.loss.log else laws + some
    low, high = np.quantile(laws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def derived(
    fit: Fitted, function: Callable[[Mapping[str, float]], float], level: float, log: bool
) -> Derived:
    """A function of the parameters by the delta method, derivatives by central differences; the
    interval is made on its log scale if ``log``.
    """
    names, linear, matrix = fit.law.params, on_own_scale(fit), covariance(fit)
    value = float(function(fit.params))
    if not np.isfinite(matrix).all():
        return Derived(value, np.inf, (0.0 if log else -np.inf, np.inf))
    gradient, steps = np.zeros(len(names)), (1e-3 * np.sqrt(np.diag(matrix))).tolist()
    for i, (name, step) in enumerate(zip(names, steps, strict=True)):
        if not step:
            continue
        at = fit.params[name]
        ends = (at + step, at - step) if linear[name] else (at * exp(step), at * exp(-step))
        up, down = (float(function({**fit.params, name: end})) for end in ends)
        if log and not (up > 0 and down > 0):
            raise ValueError("log needs a quantity that stays above 0 within a small step")
        gradient[i] = (ln(up / down) if log else up - down) / (2 * step)
    error = float(np.sqrt(np.maximum(gradient @ matrix @ gradient, 0.0)))
    half = quantile(fit.freedom, level) * error
    with np.errstate(over="ignore"):
        limits = (
            (float(value * np.exp(-half)), float(value * np.exp(half)))
            if log
            else (value - half, value + half)
        )
    return Derived(value, error, limits)


def unidentified(fit: Fitted) -> dict[str, str]:
    """Exponents, of a law of several terms, that the data do not pin down, each with the reason."""
    law = fit.law
    if len(law.coefficients) == 1 or fit.freedom < 1:
        return {}
    half, share = reach(fit), dict(zip(law.params, _slopes(fit, fit.x).max(0), strict=True))
    found = {}
    for p, name in enumerate(law.exponents):
        if name in fit.fixed:
            continue
        absent = [
            c
            for c, powers in zip(law.coefficients, law.design, strict=True)
            if share[c] < 1e-9 and powers[:, p].any()
        ]
        if absent:
            found[name] = f"the term of {absent[0]} is zero"
        elif not half[name] < fit.params[name]:
            found[name] = (
                f"its 95 % interval, {fit.params[name]:.3g} +- {half[name]:.3g}, reaches zero"
            )
    logs = np.log(fit.x[fit.weights > 0])
    if logs.shape[1] > 1 and np.abs(np.corrcoef(logs.T) - np.eye(logs.shape[1])).max() > 0.999:
        found |= {
            name: f"{' and '.join(law.variables)} move together in the rows"
            for name in law.exponents
        }
    return found
