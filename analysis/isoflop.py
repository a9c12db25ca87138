"""IsoFLOP studies: the best size at each budget, its law, and the best shape of a depth / width
grid, each with its uncertainty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fits.fit import Fit, fit
from analysis.fits.intervals import quantile
from analysis.fits.laws import POWER_LAW, Array, Law, check_positive

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


@dataclass(frozen=True, eq=False)
class Valley:
    """Loss = parabola in log size at one budget (FLOP). ``loss`` is the lowest, with a Student t
    interval; ``tokens`` belongs to the best size.

    ``curve``: the parabola over the sizes tried, columns ``x`` and ``y``.
    """

    budget: float
    best: Vertex
    loss: float
    loss_interval: Interval
    tokens: float
    curve: pd.DataFrame


@dataclass(frozen=True)
class IsoFlop:
    """One variant's study: a valley per budget, and the laws N_opt = a C^b, D_opt = a C^b and of
    the lowest loss, over the budgets with a valley.
    """

    valleys: tuple[Valley, ...]
    size_law: Fit
    tokens_law: Fit
    loss_law: Fit
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class GridOptimum:
    """The best shape of a grid: the lowest cell, the cells its noise cannot tell from it, and the
    lowest point of a smooth surface along its row.

    ``noise`` is the residual sd of the surface (loss units): parabolas in log column whose three
    coefficients change linearly with the row.
    """

    row: float
    column: float
    loss: float
    tied: tuple[tuple[float, float], ...]
    smooth: Vertex
    noise: float

    def shift_to(self, other: GridOptimum) -> tuple[float, Interval]:
        """``other``'s smooth optimum over this one's, a factor, with its 95 % interval (delta
        method, Student t).
        """
        log_ratio = np.log(other.smooth.at / self.smooth.at)
        reach = quantile(min(self.smooth.freedom, other.smooth.freedom)) * np.hypot(
            self.smooth.log_error, other.smooth.log_error
        )
        return float(np.exp(log_ratio)), (
            float(np.exp(log_ratio - reach)),
            float(np.exp(log_ratio + reach)),
        )


def isoflop(
    runs: pd.DataFrame,
    *,
    law: Law = POWER_LAW,
    budget: str = "flops",
    size: str = "params",
    tokens: str = "tokens",
    loss: str = "val/loss",
) -> dict[str, IsoFlop]:
    """The study of each ``variant`` of the table (one row per run; without that column, of all rows
    under the name ``runs``).

    Runs whose ``budget`` (FLOP) differs by less than 10 % share a budget. The parabola is in log
    ``size`` (Hoffmann et al. 2022, approach 2). Raises ValueError: a column is missing, a value is
    not positive and finite, a budget has fewer than three sizes, or fewer than two have a valley.
    """
    columns = [budget, size, tokens, loss]
    if missing := [name for name in columns if name not in runs]:
        raise ValueError(
            f"the table has no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, runs.columns))}"
        )
    for name in columns:
        check_positive(name, runs[name])
    groups: list[Any] = list(runs.groupby("variant")) if "variant" in runs else [("runs", runs)]
    return {
        str(name): _study(str(name), rows[columns].to_numpy(dtype=np.float64), law)
        for name, rows in groups
    }


def _study(name: str, rows: Array, law: Law) -> IsoFlop:
    rows = rows[np.argsort(rows[:, 0])]
    cuts = np.flatnonzero(np.diff(np.log(rows[:, 0])) > np.log(1.1)) + 1
    valleys = tuple(_valley(name, part) for part in np.split(rows, cuts))
    good = [v for v in valleys if v.best.inside]
    lost = [
        f"{name}: at {v.budget:.3g} FLOP the best size is not inside the sizes tried; left out of "
        "the laws"
        for v in valleys
        if not v.best.inside
    ]
    if len(good) < 2:
        raise ValueError(
            f"{name}: {len(good)} of {len(valleys)} budgets have a best size inside the sizes "
            "tried; two are needed: widen the sizes"
        )
    c = [v.budget for v in good]
    size_law, tokens_law = (
        fit(Law("a C^b"), c, values)
        for values in ([v.best.at for v in good], [v.tokens for v in good])
    )
    loss_law = fit(law, c, [v.loss for v in good])
    return IsoFlop(valleys, size_law, tokens_law, loss_law, (*lost, *loss_law.warnings))


def _valley(name: str, rows: Array) -> Valley:
    budget, log_size = float(np.exp(np.log(rows[:, 0]).mean())), np.log(rows[:, 1])
    if (sizes := len(np.unique(log_size))) < 3:
        raise ValueError(
            f"{name}: the budget of {budget:.3g} FLOP has {sizes} sizes; a parabola needs three"
        )
    ends = float(log_size.min()), float(log_size.max())
    middle = sum(ends) / 2
    terms, covariance, freedom = _regress(
        np.vander(log_size - middle, 3, increasing=True), rows[:, 3]
    )
    best = _lowest_point(terms[1:], covariance[1:, 1:], freedom, middle, ends)
    at = np.log(best.at) - middle
    here = np.array([1.0, at, at**2])
    lowest, reach = (
        float(here @ terms),
        quantile(freedom) * float(np.sqrt(here @ covariance @ here)),
    )
    line = np.polynomial.polynomial.polyfit(log_size - middle, np.log(rows[:, 2]), 1)
    x = np.linspace(*ends, 100)
    curve = pd.DataFrame({"x": np.exp(x), "y": np.polynomial.polynomial.polyval(x - middle, terms)})
    return Valley(
        budget,
        best,
        lowest,
        (lowest - reach, lowest + reach),
        float(np.exp(line @ here[:2])),
        curve,
    )


def grid_optimum(grid: pd.DataFrame) -> GridOptimum:
    """The best shape of one variant's grid of losses: columns and index are the two shape ratios
    (positive), missing cells are NaN.

    For Fig. 7 of Attention Residuals (2603.15031) the columns are d / num_layers and the rows heads
    / num_layers. Raises ValueError: fewer than seven losses, three columns or two rows.
    """
    table = grid.to_numpy(dtype=np.float64)
    i, j = np.nonzero(np.isfinite(table))
    if len(i) < 7 or len(set(j)) < 3 or len(set(i)) < 2:
        raise ValueError(
            f"the grid has {len(i)} losses in {len(set(i))} rows and {len(set(j))} columns; at "
            "least 7 in 2 and 3 are needed"
        )
    row, column, loss = (
        np.asarray(grid.index, dtype=np.float64)[i],
        np.asarray(grid.columns, dtype=np.float64),
        table[i, j],
    )
    best = int(np.argmin(loss))
    middle = float(np.log(column).mean())
    parabola = np.vander(np.log(column[j]) - middle, 3, increasing=True)
    design = np.c_[parabola, (row - row[best])[:, None] * parabola]
    terms, covariance, freedom = _regress(design, loss)
    noise = float(np.sqrt(np.sum((loss - design @ terms) ** 2) / freedom))
    smooth = _lowest_point(
        terms[1:3],
        covariance[1:3, 1:3],
        freedom,
        middle,
        (float(np.log(column.min())), float(np.log(column.max()))),
    )
    near = np.flatnonzero(loss <= loss[best] + quantile(freedom) * np.sqrt(2) * noise)
    tied = tuple((float(row[k]), float(column[j[k]])) for k in near if k != best)
    return GridOptimum(
        float(row[best]), float(column[j[best]]), float(loss[best]), tied, smooth, noise
    )


def _regress(design: Array, y: Array) -> tuple[Array, Array, int]:
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


def _lowest_point(
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
