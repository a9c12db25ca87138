"""Case bootstrap of a fit: all resamples are refitted at once, as multiplicities of the same
rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from analysis.fits.fitted import Fitted
from analysis.fits.laws import Array
from analysis.fits.solve import minimise

CHUNK = 128  # resamples solved together: their derivatives stay in the cache


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Refits of n resamples; NaN where a resample has fewer distinct x than the law has parameters,
    or reached no optimum.
    """

    params: Mapping[str, Array]
    objective: Array
    failed: int

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Percentile limits of each parameter over the resamples that were fitted."""
        limits = {
            name: np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
            for name, values in self.params.items()
        }
        return {name: (float(low), float(high)) for name, (low, high) in limits.items()}


def bootstrap(fit: Fitted, n: int = 4000, seed: int = 0) -> Bootstrap:
    """Refit ``n`` case resamples of the rows, starting from the fit. An equal ``seed`` gives equal
    results on any number of cores. Raises ValueError: n is not positive, or the weights of the rows
    add up to less than one row.
    """
    rows = round(float(fit.weights.sum()))
    if n < 1 or rows < 1:
        raise ValueError(
            f"n is {n} and the weights add up to {fit.weights.sum():g} rows: both must be at "
            "least 1"
        )
    objective = fit.function
    start = objective.point(fit.params)
    counts = (
        np.random.default_rng(seed)
        .multinomial(rows, fit.weights / fit.weights.sum(), size=n)
        .astype(np.float64)
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = [counts[i : i + CHUNK] for i in range(0, n, CHUNK)]
        parts = list(
            pool.map(
                lambda chunk: minimise(objective, np.tile(start, (len(chunk), 1)), chunk), chunks
            )
        )
    _, place = np.unique(fit.x, axis=0, return_inverse=True)
    distinct = (counts @ np.eye(place.max() + 1)[place] > 0).sum(1)
    failed = ~np.concatenate([part.converged for part in parts]) | (
        distinct < len(fit.params) - len(fit.fixed)
    )
    params = objective.params(np.concatenate([part.point for part in parts]))
    value = objective.reported(np.concatenate([part.value for part in parts]), rows)
    missing = np.where(failed, np.nan, 0.0)
    return Bootstrap(
        {name: values + missing for name, values in params.items()},
        value + missing,
        int(failed.sum()),
    )
