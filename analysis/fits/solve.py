"""Many small fits at once: starts by variable projection, then a projected Newton method with exact
derivatives, vectorised over problems.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.fits.laws import Array
from analysis.fits.objective import Objective

ITERATIONS = 200
UNGRADUATED = 3  # starts of a Huber fit that do not pass through larger thresholds
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Solution:
    """Where B minimisations ended."""

    point: Array  # (B, P)
    value: Array  # (B,)
    gradient: Array  # (B, P), zero where a bound or a fixed parameter holds
    converged: Flags  # (B,)


@dataclass(frozen=True)
class Certificate:
    """What a fit shows for itself instead of an optimiser's word."""

    # largest entry of the gradient of the objective by log coefficient or exponent, over parameters
    # that no bound holds
    gradient_norm: float
    moved: bool  # whether the optimum is away from every start
    restarts: int
    # how many restarts, from separate cells of a grid of exponents, ended at the best objective (to
    # 1e-6 of it)
    agreeing: int
    bounds_hit: tuple[str, ...]
    converged: bool

    @property
    def restarts_agree(self) -> bool:
        """Whether at least half of the restarts found this optimum."""
        return 2 * self.agreeing >= self.restarts


def solve(objective: Objective, weights: Array) -> tuple[Array, float, Certificate]:
    """The best point (P,) from all starts, its objective, and its certificate. ``weights`` (n,).

    Huber's threshold is graduated by tens, 0.1, 0.01, ... down to the wanted one. As that leads
    many starts into one path, some go straight to the wanted threshold; least squares is one stage.
    """
    point = starts(objective, weights)
    first = np.r_[point, point[:UNGRADUATED]] if objective.loss.huber else point
    point = first.copy()
    every = np.broadcast_to(weights, (len(first), len(weights)))
    led = slice(0, len(first) - UNGRADUATED)
    delta = 0.1
    while np.inf > objective.loss.threshold * 1.5 < delta:
        stage = replace(objective, loss=replace(objective.loss, delta=delta))
        point[led] = minimise(stage, point[led], every[led]).point
        delta /= 10
    found = minimise(objective, point, every)
    best = int(np.argmin(found.value))
    point, value, terms = found.point[best], float(found.value[best]), objective.z.shape[0]
    lower, upper = objective.bounds
    names = [*objective.law.coefficients, *objective.law.exponents]
    hit = tuple(
        name
        for name, at in zip(
            names, objective.free & ((point <= lower) | (point >= upper)), strict=True
        )
        if at
    )
    by_log = found.gradient[best] * np.r_[point[:terms], np.ones(len(point) - terms)]
    agreeing = int(
        np.sum(found.value <= value * (1 + 1e-6) + 1e-24 * weights @ objective.magnitude)
    )
    moved = bool((np.abs(first - point).max(1) > 1e-9).all())
    return (
        point,
        value,
        Certificate(
            float(np.abs(by_log).max()),
            moved,
            len(first),
            agreeing,
            hit,
            bool(found.converged[best]),
        ),
    )


def minimise(
    objective: Objective,
    start: Array,
    weights: Array,
    free: Flags | None = None,
) -> Solution:
    """Projected, damped Newton from ``start`` (B, P) with ``weights`` (B, n); parameters where
    ``free`` (P,) is false stay.
    """
    lower, upper = objective.bounds
    fixed = ~(objective.free if free is None else objective.free & free)
    point, left = start.copy(), np.arange(len(start))
    value, gradient = np.full(len(start), np.inf), np.zeros_like(start)
    converged = np.zeros(len(start), bool)
    damping, floor = np.full(len(start), 1e-3), 1e-30 * weights @ objective.magnitude
    with np.errstate(all="ignore"):
        here = objective.evaluate(point, weights)
        for _ in range(ITERATIONS):
            held = (
                fixed
                | ((point[left] <= lower) & (here[1] > 0))
                | ((point[left] >= upper) & (here[1] < 0))
            )
            slope = np.where(held, 0.0, here[1])
            step, decrement = _step(here[2], here[3], slope, damping, held)
            trial = np.where(fixed, point[left], np.clip(point[left] + step, lower, upper))
            done = ((np.abs(decrement) <= 1e-15 * here[0]) & (damping < 1e-5)) | (
                here[0] <= floor[left]
            )
            stuck = damping > 1e8
            value[left], gradient[left] = here[0], slope
            # too small a step for the objective to tell, but exact to second order
            point[left[done]] = trial[done]
            converged[left] = (
                np.abs(decrement) * np.maximum(damping, 1) <= 1e-9 * here[0] + floor[left]
            )
            keep = ~(done | stuck)
            left, trial, damping = left[keep], trial[keep], damping[keep]
            here = [part[keep] for part in here]
            if not len(left):
                break
            there = objective.evaluate(trial, weights[left])
            better = (there[0] <= here[0] * (1 + 1e-15)) | ~np.isfinite(here[0])
            point[left[better]] = trial[better]
            damping = np.where(
                better, np.maximum(damping / 10, 1e-14), np.maximum(damping, 1e-7) * 10
            )
            here = [
                np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in zip(there, here, strict=True)
            ]
    return Solution(point, np.where(np.isfinite(value), value, np.inf), gradient, converged)


def _step(
    hessian: Array, scale: Array, slope: Array, damping: Array, held: Flags
) -> tuple[Array, Array]:
    """The damped Newton step (B, P), uphill ones turned by the moduli of the eigenvalues, and the
    decrease (B,) it predicts; held parameters stay.
    """
    size = hessian.shape[1]
    unit = 1 / np.sqrt(np.maximum(scale, 1e-12 * scale.max(1, keepdims=True) + 1e-300))
    matrix = np.where(
        held[:, :, None] | held[:, None, :], 0.0, hessian * unit[:, :, None] * unit[:, None]
    )
    matrix[:, range(size), range(size)] += np.where(held, 1.0, damping[:, None])
    matrix = np.where(np.isfinite(matrix).all((1, 2), keepdims=True), matrix, np.eye(size))
    slope = slope * unit
    step: Array = np.asarray(-np.linalg.solve(matrix, slope[:, :, None])[:, :, 0], dtype=np.float64)
    uphill = np.sum(step * slope, axis=1) > 0
    if uphill.any():
        values, vectors = np.linalg.eigh(matrix[uphill])
        inner = np.einsum("bij,bi->bj", vectors, slope[uphill]) / np.maximum(np.abs(values), 1e-3)
        step[uphill] = -np.einsum("bij,bj->bi", vectors, inner)
    return step * unit, np.sum(step * slope, axis=1) / 2


def starts(objective: Objective, weights: Array) -> Array:
    """The best, well separated points (B, P) of a grid of exponents, coefficients by non-negative
    least squares of relative residuals.
    """
    from scipy.optimize import nnls

    terms, exponents, _ = objective.z.shape
    per_axis, blocks = (32, 8) if exponents == 1 else (16, 4) if exponents == 2 else (8, 2)
    axis = np.geomspace(0.02, 4.0, per_axis)
    axis = np.r_[-axis[::-2], axis[1::2]] if terms == 1 else axis
    held = objective.held
    axes = [axis if np.isnan(e) else np.array([e]) for e in held[terms:]]
    grid = np.array(list(itertools.product(*axes)))
    block = list(
        itertools.product(*([i * blocks // per_axis for i in range(len(a))] for a in axes))
    )
    basis = objective.model(np.c_[np.ones((len(grid), terms)), grid])[1][:, :terms]
    size = 1.0 if not objective.loss.log else objective.y
    root = np.sqrt(weights) / (size * objective.sigma)
    free, given = np.isnan(held[:terms]), np.nan_to_num(held[:terms])
    best: dict[tuple[int, ...], int] = {}
    solved = [
        nnls((powers[free] * root).T, (objective.y - given @ powers) * root)
        if free.any()
        else (np.zeros(0), float(np.sum(((objective.y - given @ powers) * root) ** 2)))
        for powers in basis
    ]
    for i in sorted(range(len(grid)), key=lambda i: float(solved[i][1])):
        best.setdefault(block[i], i)  # the best of each cell, the best cells first
    points = np.tile(np.r_[given, np.zeros(exponents)], (min(len(best), 2 + 3 * exponents), 1))
    for point, i in zip(points, best.values(), strict=False):
        point[:terms][free], point[terms:] = solved[i][0], grid[i]
    return points
