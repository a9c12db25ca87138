"""Parabolas in log x by least squares, and their lowest points with Fieller limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fits.intervals import quantile
from analysis.fits.laws import Array

Interval = tuple[float, float]


@dataclass(frozen=True)
class Vertex:
    """The lowest point of a parabola in log x: ``at`` (NaN if it opens downwards), a 95 % Fieller
    interval, and whether it is inside the x tried.
    """

    at: float
    interval: Interval
    log_error: float
    freedom: int
    inside: bool


def regress(design: Array, y: Array) -> tuple[Array, Array, int]:
    """Least squares: coefficients, their covariance (for a variance of 1 without rows left for the
    noise), degrees of freedom.
    """
    inverse: Array = np.asarray(np.linalg.inv(design.T @ design), dtype=np.float64)
    terms: Array = inverse @ (design.T @ y)
    freedom = len(y) - int(design.shape[1])
    return (
        terms,
        inverse * (np.sum((y - design @ terms) ** 2) / freedom if freedom else 1.0),
        freedom,
    )


def lowest_point(
    terms: Array, covariance: Array, freedom: int, middle: float, ends: Interval
) -> Vertex:
    """The lowest point of terms[0] t + terms[1] t^2, t = log x - middle, with Fieller limits: the t
    where the slope may be zero.
    """
    slope, curve = terms
    if not curve > 0:
        return Vertex(np.nan, (0.0, np.inf), np.inf, freedom, False)
    at = -slope / (2 * curve)
    interval, error = (0.0, np.inf), np.inf
    if freedom:
        q2 = quantile(freedom) ** 2
        a, b, c = (
            curve**2 - q2 * covariance[1, 1],
            slope * curve - q2 * covariance[0, 1],
            slope**2 - q2 * covariance[0, 0],
        )
        gradient = np.array([1.0, 2 * at])
        error = float(np.sqrt(gradient @ covariance @ gradient) / (2 * curve))
        if a > 0:
            root = np.sqrt(max(b**2 - a * c, 0.0))
            interval = (
                float(np.exp(middle + (-b - root) / (2 * a))),
                float(np.exp(middle + (-b + root) / (2 * a))),
            )
    return Vertex(
        float(np.exp(middle + at)),
        interval,
        error,
        freedom,
        bool(ends[0] <= middle + at <= ends[1]),
    )
