"""Intervals of a fit: the delta method and the profiled objective, both with Student t."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit  # scipy.stats takes half a second to import

from analysis.laws import Array
from analysis.solve import minimise

if TYPE_CHECKING:
    from analysis.fit import Fit

Limits = dict[str, tuple[float, float]]


def freedom(fit: Fit) -> float:
    """Rows (by multiplicity) minus parameters."""
    return float(fit.weights.sum()) - len(fit.params)


def quantile(freedom: float, level: float = 0.95) -> float:
    """Student's two-sided quantile; infinite without degrees of freedom."""
    return float(stdtrit(freedom, (1 + level) / 2)) if freedom > 0 else np.inf


def _linear(fit: Fit) -> dict[str, bool]:
    """Whether a parameter's interval is made on its own scale (exponents, constants) and not on the
    log scale.
    """
    constant = ~np.any(fit.law.design, axis=(1, 2))
    own = dict(zip(fit.law.coefficients, constant, strict=True)) | dict.fromkeys(
        fit.law.exponents, True
    )
    return {name: bool(own[name]) for name in fit.law.params}


def _slopes(fit: Fit, x: Array) -> Array:
    """Derivatives (n, P) of log prediction by the parameters: by log coefficient for powers, by the
    coefficient itself for a constant.
    """
    law, linear = fit.law, _linear(fit)
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


def _noise(fit: Fit) -> tuple[float, float]:
    """Variance of the score and mean curvature of the loss (Huber and Ronchetti, Robust Statistics,
    section 7.6); (s^2, 1) for least squares.
    """
    residual, delta = fit.residuals, fit.delta if fit.loss == "huber" else np.inf
    score = np.clip(residual, -delta, delta)
    curvature = float(np.average(np.abs(residual) <= delta, weights=fit.weights))
    return float(np.sum(fit.weights * score**2)) / max(freedom(fit), 1e-300), max(curvature, 1e-300)


def covariance(fit: Fit) -> Array:
    """(P, P) in the order of ``fit.params``, coefficients of powers on the log scale; infinite
    where the data do not identify the parameters.
    """
    slopes = _slopes(fit, fit.x) * (fit.predict(fit.x)[:, None] if fit.loss == "mse" else 1.0)
    slopes = slopes * np.sqrt(fit.weights)[:, None]
    scale = np.linalg.norm(slopes, axis=0)
    if not (scale > 0).all() or np.linalg.cond(slopes / scale) > 1e10:
        return np.full((len(scale), len(scale)), np.inf)
    root = np.linalg.inv(np.linalg.qr(slopes / scale, mode="r")) / scale[:, None]
    variance, curvature = _noise(fit)
    result: Array = root @ root.T * variance / curvature**2
    return result


def _reach(fit: Fit, level: float = 0.95) -> dict[str, float]:
    """Half-widths by Student t, on the log scale for coefficients of powers; infinite where nothing
    is known.
    """
    half = quantile(freedom(fit), level) * np.sqrt(np.diag(covariance(fit)))
    return dict(
        zip(fit.law.params, np.nan_to_num(half, nan=np.inf, posinf=np.inf).tolist(), strict=True)
    )


def delta_t(fit: Fit, level: float) -> Limits:
    """Wald intervals with Student t."""
    limits, linear = {}, _linear(fit)
    for name, half in _reach(fit, level).items():
        value = fit.params[name]
        if linear[name]:
            limits[name] = (
                value - half if name in fit.law.exponents else max(0.0, value - half),
                value + half,
            )
        else:
            with np.errstate(over="ignore"):
                limits[name] = (
                    float(value * np.exp(-half)),
                    float(value * np.exp(half)) if value else np.inf,
                )
    return limits


def band(fit: Fit, x: ArrayLike, level: float) -> tuple[Array, Array]:
    """Limits of the law at x."""
    slopes = _slopes(fit, fit.law.columns(x))
    with np.errstate(invalid="ignore", over="ignore"):
        variance = np.einsum("np,pq,nq->n", slopes, covariance(fit), slopes)
        factor = np.exp(
            np.nan_to_num(
                quantile(freedom(fit), level) * np.sqrt(np.maximum(variance, 0)),
                nan=np.inf,
                posinf=np.inf,
            )
        )
    predicted = fit.predict(x)
    return predicted / factor, predicted * factor


def unidentified(fit: Fit) -> dict[str, str]:
    """Exponents, of a law of several terms, that the data do not pin down, each with the reason."""
    law = fit.law
    if len(law.coefficients) == 1 or freedom(fit) < 1:
        return {}
    reach, share = _reach(fit), dict(zip(law.params, _slopes(fit, fit.x).max(0), strict=True))
    found = {}
    for p, name in enumerate(law.exponents):
        absent = [
            c
            for c, powers in zip(law.coefficients, law.design, strict=True)
            if share[c] < 1e-9 and powers[:, p].any()
        ]
        if absent:
            found[name] = f"the term of {absent[0]} is zero"
        elif not reach[name] < fit.params[name]:
            found[name] = (
                f"its 95 % interval, {fit.params[name]:.3g} +- {reach[name]:.3g}, reaches zero"
            )
    logs = np.log(fit.x[fit.weights > 0])
    if logs.shape[1] > 1 and np.abs(np.corrcoef(logs.T) - np.eye(logs.shape[1])).max() > 0.999:
        found |= {
            name: f"{' and '.join(law.variables)} move together in the rows"
            for name in law.exponents
        }
    return found


def profile(fit: Fit, level: float) -> Limits:
    """Limits where the objective, minimised over the other parameters, exceeds its least by t^2
    times the noise (Bates and Watts 1988, chapter 6).
    """
    variance, curvature = _noise(fit)
    if variance < 1e-24 * (np.median(fit.y) ** 2 if fit.loss == "mse" else 1.0):
        # only rounding is left, and the objective is too rough to be followed
        return delta_t(fit, level)
    cut, reach, linear = (
        quantile(freedom(fit), level) ** 2 * variance / curvature,
        _reach(fit, level),
        _linear(fit),
    )
    profiles = {name: _Profile(fit, name, linear[name]) for name in fit.params}
    return {
        name: (one.limit(-1, reach[name], cut), one.limit(1, reach[name], cut))
        for name, one in profiles.items()
    }


class _Profile:
    """Twice the excess of the summed loss over its minimum along one parameter: on its own scale if
    ``linear``, else along its logarithm.
    """

    def __init__(self, fit: Fit, name: str, linear: bool) -> None:
        self.index, self.linear, self.best = (
            [*fit.law.coefficients, *fit.law.exponents].index(name),
            linear,
            fit.params[name],
        )
        problem, centre = fit.problem, fit.problem.centre.copy()
        self.unit = problem.scale if self.index < len(centre) else 1.0
        if self.index < len(centre):
            centre[self.index] = (
                # then the point holds the coefficient itself, and the rest of the problem stays
                # centred
                0.0
            )
        self.problem, self.weights = replace(problem, centre=centre), fit.weights[None]
        self.loss_unit = problem.scale**2 if fit.loss == "mse" else 1.0
        self.point = self.last = self.problem.point(fit.params)
        self.least = float(self.problem.evaluate(self.point[None], self.weights)[0][0])

    def excess(self, position: float) -> float:
        """The excess with the parameter (or its log) at ``position``."""
        free = np.arange(len(self.point)) != self.index
        starts: Array = np.array([self.point, self.last])
        starts[:, self.index] = (position if self.linear else np.exp(position)) / self.unit
        solution = minimise(self.problem, starts, np.repeat(self.weights, 2, axis=0), free)
        near = int(np.argmin(solution.value))
        self.last = solution.point[near]
        return 2 * (float(solution.value[near]) - self.least) * self.loss_unit

    def limit(self, sign: int, reach: float, cut: float) -> float:
        """Where the excess passes ``cut`` on one side, stepping by ``reach`` at first; the bound if
        it never does.
        """
        from scipy.optimize import brentq

        low, high = (
            (float(bound[self.index] * self.unit) for bound in self.problem.bounds)
            if self.linear
            else (-np.inf, np.inf)
        )
        end = high if sign > 0 else low
        never = end if self.linear else float(np.exp(end))
        if not np.isfinite(cut) or (not self.linear and self.best == 0):
            return never
        self.last = self.point
        middle = near = self.best if self.linear else float(np.log(self.best))
        for doubling in range(12):
            far = float(
                np.clip(
                    middle + sign * (reach if np.isfinite(reach) else 1.0) * 2.0**doubling,
                    low,
                    high,
                )
            )
            if self.excess(far) > cut:
                found = float(brentq(lambda u: self.excess(u) - cut, near, far, rtol=1e-6))
                return found if self.linear else float(np.exp(found))
            near = far
            if far == end:
                break
        return never
