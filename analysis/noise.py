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
    variance, df = scatter(runs)
    if df < 1 or runs["arm"].nunique() < 3:
        return None
    if share_seeds(runs):  # what a seed does at one size it may do at all: it is one case
        means = runs.groupby(["arm", "size"], observed=True)["y"].transform("mean")
        by_seed = runs.assign(y=runs["y"] - means).groupby(["seed", "arm"], observed=True)["y"]
        cells = by_seed.mean().unstack("arm")
        sizes = np.zeros(len(cells), dtype=np.intp)
    else:
        cells = runs.pivot(index=["size", "seed"], columns="arm", values="y")
        sizes = pd.factorize(cells.index.get_level_values("size"))[0]
    drawn = np.random.default_rng(0).normal(size=(SIMULATED, *cells.shape))
    drawn[:, cells.isna().to_numpy()] = np.nan
    found, *null = _inequality(np.concatenate([cells.to_numpy()[None], drawn]), sizes)
    p = (1 + np.sum(np.array(null) >= found)) / (1 + SIMULATED)
    return Noise(variance, df, float(p))


def share_seeds(runs: pd.DataFrame) -> bool:
    """Whether a label of two or more in the column seed stands at two or more sizes."""
    at = runs.groupby("seed", observed=True)["size"].nunique()
    return len(at) > 1 and bool((at > 1).any())


def scatter(runs: pd.DataFrame) -> tuple[float, int]:
    """Variance over seeds of a value y less the effects of arm and, with several arms, of seed at
    each size (columns arm, size, seed, y), and its degrees of freedom, 0 without a repetition.

    Where sizes share seeds it is what their mean shows: a seed may move an arm at all sizes alike,
    so the residuals are added up over the sizes, each scaled for what its own means have taken out,
    and seeds are the cases. It is the variance of a run that would give the mean over sizes that
    error if its runs were independent.
    """
    arms, seeds = runs["arm"].nunique(), runs["seed"].nunique()
    squares, df, inverse, parts = 0.0, 0, 0.0, []
    for _, cell in runs.groupby("size", observed=True):
        design = pd.get_dummies(cell[["arm", "seed"][: min(arms, 2)]].astype(str), dtype=float)
        loss = cell["y"].to_numpy(float)
        terms, _, rank, _ = np.linalg.lstsq(design.to_numpy(), loss)
        rest, spare = loss - design.to_numpy() @ terms, len(loss) - int(rank)
        squares, df, inverse = squares + float(rest @ rest), df + spare, inverse + arms / len(loss)
        parts.append(cell.assign(rest=rest / np.sqrt(len(loss) * max(spare, 1)), spare=spare))
    if df < 1:
        return float("nan"), 0
    alone = max(squares / df, ROUNDING)
    if not share_seeds(runs):
        return alone, df
    every = pd.concat(parts)
    sums = every.groupby(["arm", "seed"], observed=True)["rest"].sum()
    common = max(float(arms * np.sum(sums**2) / inverse), ROUNDING)
    if (every["spare"] < 1).any():  # of a size without a repetition nothing is seen
        common = max(common, alone)
    return common, max(arms - 1, 1) * (seeds - 1)


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
