"""The scatter of losses over seeds that all variants share, and a test of whether they do."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.fits.laws import Array
from analysis.gain.paired import ROUNDING

SIMULATED = 999


class Noise(NamedTuple):
    """Variance of one run's loss over seeds, its degrees of freedom, and p of H0 "all variants
    have it".
    """

    variance: float
    df: int
    p: float


def shared_noise(runs: pd.DataFrame) -> Noise | None:
    """The residual of losses (columns arm, size, seed, y) in a two-way layout of arms and seeds at
    each size; None below three arms or where nothing is repeated.

    The test compares the variances of the differences of all pairs of arms: with few arms a wild
    one is in the residuals of all. The mean of their logs under the log of their mean is set
    against its distribution for equal normal noise in the same cells, by simulation (fixed seed).
    """
    squares, df = 0.0, 0
    for _, rows in runs.groupby("size", observed=True):
        design = pd.get_dummies(rows[["arm", "seed"]].astype(str), dtype=float).to_numpy()
        loss = rows["y"].to_numpy(float)
        terms, _, rank, _ = np.linalg.lstsq(design, loss)
        squares += float(np.sum((loss - design @ terms) ** 2))
        df += len(loss) - int(rank)
    cells = runs.pivot(index=["size", "seed"], columns="arm", values="y")
    if df < 1 or cells.shape[1] < 3:
        return None
    drawn = np.random.default_rng(0).normal(size=(SIMULATED, *cells.shape))
    drawn[:, cells.isna().to_numpy()] = np.nan
    sizes = pd.factorize(cells.index.get_level_values("size"))[0].astype(float)
    found, *null = _inequality(np.concatenate([cells.to_numpy()[None], drawn]), sizes)
    p = (1 + np.sum(np.array(null) >= found)) / (1 + SIMULATED)
    return Noise(max(squares / df, ROUNDING), df, float(p))


def _inequality(losses: Array, sizes: NDArray[np.intp]) -> Array:
    """How unequal the variances of pairwise differences are, (tables,), of losses (tables, cells,
    arms) with NaN where a cell is missing; `sizes` of the cells, as codes.
    """
    variances = []
    for a, b in combinations(range(losses.shape[2]), 2):
        difference = losses[:, :, a] - losses[:, :, b]
        there = ~np.isnan(difference[0])
        group = (sizes[there, None] == np.unique(sizes[there])).astype(float)
        if df := len(group) - group.shape[1]:
            difference = difference[:, there]
            means = difference @ group / group.sum(axis=0)
            rest = difference - means @ group.T
            variances.append(np.maximum(np.sum(rest**2, axis=1) / df, ROUNDING))
    if not variances:
        return np.zeros(len(losses))
    return np.asarray(np.log(np.mean(variances, axis=0)) - np.mean(np.log(variances), axis=0))
