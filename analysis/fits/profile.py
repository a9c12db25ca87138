"""Intervals by the profiled objective, with Student t."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from analysis.fits.fitted import Fitted
from analysis.fits.intervals import Limits, delta_t, noise, on_own_scale, quantile, reach
from analysis.fits.laws import Array
from analysis.fits.solve import minimise


def profile(fit: Fitted, level: float) -> Limits:
    """Limits where the objective, minimised over the other parameters, exceeds its least by t^2
    times the noise (Bates and Watts 1988, chapter 6).
    """
    variance, curvature = noise(fit)
    size = 1.0 if fit.loss.log else float(np.median(fit.y)) ** 2
    if variance < 1e-24 * size / float(np.median(fit.rows.sigma)) ** 2:
        # only rounding is left, and the objective is too rough to be followed
        return delta_t(fit, level)
    cut = quantile(fit.freedom, level) ** 2 * variance / curvature
    half, linear = reach(fit, level), on_own_scale(fit)
    limits = {name: (value, value) for name, value in fit.params.items()}
    for name in (name for name in limits if name not in fit.fixed):
        one = _Profile(fit, name, linear[name])
        limits[name] = (one.limit(-1, half[name], cut), one.limit(1, half[name], cut))
    return limits


class _Profile:
    """Twice the excess of the summed loss over its minimum along one parameter: on its own scale if
    ``linear``, else along its logarithm.
    """

    def __init__(self, fit: Fitted, name: str, linear: bool) -> None:
        self.index, self.linear, self.best = (
            [*fit.law.coefficients, *fit.law.exponents].index(name),
            linear,
            fit.params[name],
        )
        objective = fit.function
        centre = objective.centre.copy()
        self.unit = objective.scale if self.index < len(centre) else 1.0
        if self.index < len(centre):
            centre[self.index] = (
                # then the point holds the coefficient itself, and the rest of the objective stays
                # centred
                0.0
            )
        self.objective, self.weights = replace(objective, centre=centre), fit.weights[None]
        self.point = self.last = self.objective.point(fit.params)
        self.least = float(self.objective.evaluate(self.point[None], self.weights)[0][0])

    def excess(self, position: float) -> float:
        """The excess with the parameter (or its log) at ``position``."""
        free = np.arange(len(self.point)) != self.index
        starts: Array = np.array([self.point, self.last])
        starts[:, self.index] = (position if self.linear else np.exp(position)) / self.unit
        solution = minimise(self.objective, starts, np.repeat(self.weights, 2, axis=0), free)
        near = int(np.argmin(solution.value))
        self.last = solution.point[near]
        return 2 * (float(solution.value[near]) - self.least)

    def limit(self, sign: int, step: float, cut: float) -> float:
        """Where the excess passes ``cut`` on one side; the bound if it never does. The first step
        is 1.5 ``step``, for where the law is linear the limit itself lies at ``step``.
        """
        from scipy.optimize import brentq

        low, high = (
            (float(bound[self.index] * self.unit) for bound in self.objective.bounds)
            if self.linear
            else (-np.inf, np.inf)
        )
        end = high if sign > 0 else low
        never = end if self.linear else float(np.exp(end))
        if not np.isfinite(cut) or (not self.linear and self.best == 0):
            return never
        self.last = self.point
        middle = near = self.best if self.linear else float(np.log(self.best))
        # brentq asks again for its ends, and a refit from another point rounds differently
        excess = cache(self.excess)
        step = 1.5 * step if np.isfinite(step) else 1.0
        for doubling in range(12):
            far = float(np.clip(middle + sign * step * 2.0**doubling, low, high))
            if excess(far) > cut:
                found = float(brentq(lambda u: excess(u) - cut, near, far, rtol=1e-6))
                return found if self.linear else float(np.exp(found))
            near = far
            if far == end:
                break
        return never
