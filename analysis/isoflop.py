"""IsoFLOP studies: the best size at each budget and its law, each with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from analysis.checks import DONE, filled, numeric, states
from analysis.fits.fit import Fit, fit
from analysis.fits.intervals import quantile
from analysis.fits.laws import POWER_LAW, Array, Law, check_positive
from analysis.parabola import Interval, Vertex, lowest_point, regress


@dataclass(frozen=True, eq=False)
class Valley:
    """Loss = parabola in log size at one budget (FLOP), of the rows inside the window. ``loss`` is
    the lowest, with a Student t interval; ``tokens`` belongs to the best size.

    ``curve``: the parabola over the sizes of the window, columns ``x`` and ``y``. ``unit_error``:
    error of the best log size for losses with an sd of 1, from the sizes and the curvature alone.
    ``cubic``: what a cubic term explains and leaves of the squared losses, and by what log factor
    it moves the best size; NaN where there are no rows, or only three sizes, for one.
    """

    budget: float
    best: Vertex
    loss: float
    loss_interval: Interval
    tokens: float
    curve: pd.DataFrame
    unit_error: float
    cubic: tuple[float, float, float]


@dataclass(frozen=True)
class IsoFlop:
    """One variant's study: a valley per budget, and the laws N_opt = a C^b, D_opt = a C^b and of
    the lowest loss, over the budgets whose best size is inside the sizes tried; the first two
    weighted by the vertices' unit errors, since a flat valley tells its best size poorly. None, and
    a warning, where fewer than two budgets have one.
    """

    valleys: tuple[Valley, ...]
    size_law: Fit | None
    tokens_law: Fit | None
    loss_law: Fit | None
    warnings: tuple[str, ...]


def isoflop(  # noqa: PLR0913
    runs: pd.DataFrame,
    *,
    law: Law = POWER_LAW,
    window: float = 4.0,
    budget: str = "flops",
    size: str = "params",
    tokens: str = "tokens",
    loss: str = "val/loss",
) -> dict[str, IsoFlop]:
    """The study of each ``variant`` of the table (one row per run; without that column, of all rows
    under the name ``runs``), from the columns ``budget``, ``size``, ``tokens`` and ``loss``;
    ``law`` is that of the lowest loss.

    Runs whose ``budget`` (FLOP) differs by less than 10 % share a budget. The parabola is in log
    ``size`` (Hoffmann et al. 2022, approach 2), through the sizes within a factor ``window`` of
    the one with the lowest loss, at least the three nearest: a loss is no parabola over decades,
    and far arms pull the vertex. Where a cubic term fits better over all budgets (F test), a
    warning says by how much it moves the best sizes; another names the budgets with fewer than
    three sizes, which have no valley. A ``status`` column, if there, tells which runs diverged or
    did not finish: they are left out, and counted in the warnings. Raises ValueError: a column is
    missing, a value is not positive and finite, a status is unknown, or ``window`` is not above 1.
    """
    if not window > 1:
        raise ValueError(f"window is {window!r}: give the factor about the best size, above 1")
    columns = [budget, size, tokens, loss]
    if missing := [name for name in columns if name not in runs]:
        raise ValueError(
            f"the table has no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, runs.columns))}"
        )
    runs = runs.reset_index(drop=True)
    done = states(runs).isin(DONE)
    if "variant" in runs:
        filled(runs, ["variant"])
    for name in columns:
        check_positive(name, runs[name].where(done, 1.0))
    groups: list[Any] = list(runs.groupby("variant")) if "variant" in runs else [("runs", runs)]
    found = {}
    for name, every in groups:
        rows = numeric(every[done.loc[every.index]], columns)
        study = _study(str(name), rows[columns].to_numpy(), law, window)
        if left := len(every) - len(rows):
            text = f"{name}: {left} of {len(every)} runs diverged or did not finish; left out"
            study = replace(study, warnings=(text, *study.warnings))
        found[str(name)] = study
    return found


def _study(name: str, rows: Array, law: Law, window: float) -> IsoFlop:
    rows = rows[np.argsort(rows[:, 0])]
    cuts = np.flatnonzero(np.diff(np.log(rows[:, 0])) > np.log(1.1)) + 1
    parts = [(part, len(np.unique(part[:, 1]))) for part in np.split(rows, cuts)]
    valleys = tuple(_valley(part, window) for part, sizes in parts if sizes >= 3)
    good = [v for v in valleys if v.best.inside]
    warnings = [
        f"{name}: at {part[0, 0]:.3g} FLOP there are {sizes} sizes, and a parabola needs three; "
        "left out"
        for part, sizes in parts
        if sizes < 3
    ]
    warnings += [
        f"{name}: at {v.budget:.3g} FLOP the best size is not inside the sizes tried; left out of "
        "the laws"
        for v in valleys
        if not v.best.inside
    ]
    if len(good) < 2:
        none = (
            f"{name}: {len(good)} of {len(parts)} budgets have a best size inside the sizes tried; "
            "a law needs two: widen the sizes"
        )
        return IsoFlop(valleys, None, None, None, (*warnings, none))
    c, errors = [v.budget for v in good], [v.unit_error for v in good]
    size_law, tokens_law = (
        fit(Law("a C^b"), c, values, sigma=errors)
        for values in ([v.best.at for v in good], [v.tokens for v in good])
    )
    loss_law = fit(law, c, [v.loss for v in good])
    warnings += [*_skewed(name, good), *loss_law.warnings]
    return IsoFlop(valleys, size_law, tokens_law, loss_law, tuple(warnings))


def _skewed(name: str, valleys: list[Valley]) -> list[str]:
    """A warning where cubic terms, one a budget, fit better than chance allows."""
    tested = np.array([v.cubic for v in valleys if not np.isnan(v.cubic[1])]).reshape(-1, 3)
    spare = sum(v.best.freedom - 1 for v in valleys if not np.isnan(v.cubic[1]))
    if not spare:
        return []
    explained, left, moved = tested.T
    f = explained.sum() / len(tested) / max(left.sum() / spare, np.finfo(float).tiny)
    p, most = fdtrc(len(tested), spare, f), np.exp(np.max(np.abs(moved)))
    if p > 0.05 or most < 1.01:
        return []
    return [
        f"{name}: the valleys are lopsided (cubic terms, p = {p:.2g}), which moves the best sizes "
        f"by a factor of up to {most:.3g}: narrow the window"
    ]


def _valley(rows: Array, window: float) -> Valley:
    budget, log_size = float(np.exp(np.log(rows[:, 0]).mean())), np.log(rows[:, 1])
    tried, place = np.unique(log_size, return_inverse=True)
    mean = np.bincount(place, rows[:, 3]) / np.bincount(place)
    far = np.abs(log_size - tried[np.argmin(mean)])
    third = np.sort(np.abs(tried - tried[np.argmin(mean)]))[2]
    near = far <= max(np.log(window), third) + 1e-9
    rows, log_size = rows[near], log_size[near]
    ends = float(log_size.min()), float(log_size.max())
    middle = sum(ends) / 2
    t, loss = log_size - middle, rows[:, 3]
    design = np.vander(t, 3, increasing=True)
    terms, covariance, freedom = regress(design, loss)
    best = lowest_point(terms[1:], covariance[1:, 1:], freedom, middle, ends)
    at = np.log(best.at) - middle
    here = np.array([1.0, at, at**2])
    lowest, reach = (
        float(here @ terms),
        quantile(freedom) * float(np.sqrt(here @ covariance @ here)),
    )
    line = np.polynomial.polynomial.polyfit(t, np.log(rows[:, 2]), 1)
    x = np.linspace(*ends, 100)
    gradient = np.array([0.0, 1.0, 2 * at])
    error = gradient @ np.linalg.inv(design.T @ design) @ gradient
    return Valley(
        budget,
        best,
        lowest,
        (lowest - reach, lowest + reach),
        float(np.exp(line @ here[:2])),
        pd.DataFrame({"x": np.exp(x), "y": np.polynomial.polynomial.polyval(x - middle, terms)}),
        float(np.sqrt(error) / np.abs(2 * terms[2])),
        _cubic(t, loss, at) if freedom > 1 and len(np.unique(t)) > 3 else (np.nan,) * 3,
    )


def _cubic(t: Array, loss: Array, at: float) -> tuple[float, float, float]:
    """Squares that a cubic term explains and leaves, and how far it moves the lowest point from
    ``at``, by one Newton step of the slope.
    """
    square, cubic = (np.polynomial.polynomial.polyfit(t, loss, k) for k in (2, 3))
    left = [
        float(np.sum((loss - np.polynomial.polynomial.polyval(t, terms)) ** 2))
        for terms in (square, cubic)
    ]
    slope = np.array([0.0, 1.0, 2 * at, 3 * at**2]) @ cubic
    curve = 2 * cubic[2] + 6 * cubic[3] * at
    return left[0] - left[1], left[1], float(-slope / abs(curve))
