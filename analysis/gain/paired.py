"""The paired shift model in closed form.

With y = log L and x = log C the baseline is y = a - alpha x and the variant the same curve moved, y
= a - alpha (x + theta): theta = log CEG. Every array has the shape (..., sizes), means over seeds,
so that one call serves one table or thousands of simulated ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import fdtrc, stdtr, stdtrit  # scipy.stats takes half a second to import

from analysis.fits.laws import Array

POOL_ABOVE = 0.25  # p of the F pretest above which seeds may count as independent pairs
ROUNDING = 1e-24  # variance of a log loss that is nothing but double precision


@dataclass(frozen=True)
class Shift:
    """Estimates of one or many tables, (...,): theta = log CEG, `df` of Student's t, the common
    exponent `alpha`.

    `mean` is the mean over sizes of the losses' log ratio brought to equal x, `gap` that of log
    x_variant - log x_baseline; theta = mean / alpha. `slope_t`, `slope_df`: Student's t of H0
    "equal exponents".
    """

    theta: Array
    df: Array
    alpha: Array
    alpha_variance: Array
    mean: Array
    mean_variance: Array
    gap: Array
    slope_t: Array
    slope_df: int

    @property
    def stderr(self) -> Array:
        """Standard error of theta by the delta method."""
        variance = self.mean_variance + (self.theta + self.gap) ** 2 * self.alpha_variance
        return np.asarray(np.sqrt(variance) / self.alpha)

    def delta(self, level: float = 0.95) -> tuple[Array, Array]:
        """Limits of theta by the delta method with Student's t."""
        half = stdtrit(self.df, (1 + level) / 2) * self.stderr
        return self.theta - half, self.theta + half

    def fieller(self, level: float = 0.95) -> tuple[Array, Array]:
        """Limits of theta by Fieller's theorem; infinite where the data cannot tell the exponent
        from 0.
        """
        t2 = stdtrit(self.df, (1 + level) / 2) ** 2
        quadratic = self.alpha**2 - t2 * self.alpha_variance
        top = self.mean + self.alpha * self.gap  # the mean of the log ratios as they stand
        constant = top**2 - t2 * self.mean_variance
        known = quadratic > 0
        safe = np.where(known, quadratic, 1.0)
        root = np.sqrt(np.maximum((self.alpha * top) ** 2 - safe * constant, 0))
        low, high = (self.alpha * top - root) / safe, (self.alpha * top + root) / safe
        return np.where(known, low, -np.inf) - self.gap, np.where(known, high, np.inf) - self.gap

    def not_within(self, claim: float, within: float) -> tuple[Array, Array]:
        """p of H0 "the gain is not within a factor 1 + `within` of `claim`", by two one-sided t
        tests (Schuirmann 1987), and of H0 "it is below the claim by more than that".
        """
        above, margin = (self.theta - np.log(claim)) / self.stderr, np.log1p(within) / self.stderr
        return stdtr(self.df, np.abs(above) - margin), stdtr(self.df, -above - margin)

    def slope_p(self) -> Array:
        """Two-sided p of H0: equal exponents."""
        return np.asarray(2 * stdtr(self.slope_df, -np.abs(self.slope_t)))


def line(x: Array, y: Array) -> tuple[Array, Array]:
    """Slope and sum of squared residuals of y on x over the last axis."""
    dx, dy = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
    slope = np.sum(dx * dy, axis=-1) / np.sum(dx**2, axis=-1)
    return slope, np.sum((dy - slope[..., None] * dx) ** 2, axis=-1)


def paired_shift(x_baseline: Array, y_baseline: Array, x_variant: Array, y_variant: Array) -> Shift:
    """Estimate theta from log x and log loss of both arms at the same sizes, (..., sizes).

    alpha is minus the slope of the mean of the two log losses on the mean of the two log x; d =
    y_baseline - y_variant is corrected along that slope to equal x, c = d - alpha (x_variant -
    x_baseline), so theta = mean(c) / alpha = mean(d) / alpha - mean(x_variant - x_baseline). Then
    var(theta) = (var(mean c) + (mean(d) / alpha)^2 var(alpha)) / alpha^2: mean(d) and the slope are
    uncorrelated, whatever the two arms' noise. Degrees of freedom: sizes - 1; below 5 sizes, where
    that covers too often, Welch and Satterthwaite's. Seeds do not add any: a variant's effect may
    differ by size, and pooling after a pretest covers too rarely then (docs/results/001-coverage).
    """
    x, gap = (x_baseline + x_variant) / 2, x_variant - x_baseline
    sizes = x.shape[-1]
    slope, residual = line(x, (y_baseline + y_variant) / 2)
    alpha = -slope
    sxx = np.sum((x - x.mean(axis=-1, keepdims=True)) ** 2, axis=-1)
    alpha_variance = np.maximum(residual / (sizes - 2), ROUNDING) / sxx
    c = y_baseline - y_variant - alpha[..., None] * gap
    mean, mean_gap = c.mean(axis=-1), gap.mean(axis=-1)
    mean_variance = np.maximum(c.var(axis=-1, ddof=1), ROUNDING) / sizes
    from_slope = (mean / alpha + mean_gap) ** 2 * alpha_variance
    welch = (mean_variance + from_slope) ** 2 / (
        mean_variance**2 / (sizes - 1) + from_slope**2 / (sizes - 2)
    )
    df = welch if sizes < 5 else np.full_like(welch, sizes - 1)
    trend, scatter = line(x, c)
    leak, _ = line(x, gap)  # what an error of alpha adds to the trend through the correction
    trend_variance = np.maximum(scatter / (sizes - 2), ROUNDING) / sxx + leak**2 * alpha_variance
    return Shift(
        mean / alpha,
        df,
        alpha,
        alpha_variance,
        mean,
        mean_variance,
        mean_gap,
        trend / np.sqrt(trend_variance),
        sizes - 2,
    )


def crossed_seeds(shift: Shift, values: Array) -> Shift:
    """`shift` with the variance of seeds that sizes share: a seed may move all sizes alike.

    `values`: the corrected differences c, (..., sizes, seeds), NaN where a pair is missing. With
    w = 1 / (sizes S_i), S_i the seeds of a size, and e = c - mean c, the variance of the mean is
    V_size + V_seed: I / (I - 1) sum_i (sum_s w e)^2 and S / (S - 1) sum_s (sum_i w e)^2. Degrees
    of freedom are Satterthwaite's over V_size, V_seed and the slope's part. It covers .93 to .99
    with 3 seeds and more (docs/results/001-coverage).
    """
    there = ~np.isnan(values)
    sizes, seeds = values.shape[-2:]
    weight = there / (sizes * there.sum(axis=-1, keepdims=True))
    error = weight * (np.where(there, values, 0.0) - shift.mean[..., None, None])
    by_size = sizes / (sizes - 1) * np.sum(error.sum(axis=-1) ** 2, axis=-1)
    by_seed = seeds / (seeds - 1) * np.sum(error.sum(axis=-2) ** 2, axis=-1)
    slope = (shift.theta + shift.gap) ** 2 * shift.alpha_variance
    parts = by_size**2 / (sizes - 1) + by_seed**2 / (seeds - 1) + slope**2 / (sizes - 2)
    variance = np.maximum(by_size + by_seed, ROUNDING)
    df = (by_size + by_seed + slope) ** 2 / np.maximum(parts, ROUNDING**2)
    return replace(shift, mean_variance=variance, df=np.maximum(df, 1.0))


def foretold(corrected: Array, pairs: Array) -> Array:
    """Two-sided p of H0 "the last size has the mean of the others", (...,), from means over
    `pairs` seeds, (..., sizes), that scatter alike: Student's t of a further value.

    Fewer seeds at the last size than at the others scatter more: then all of the scatter is taken
    for that of seeds, which errs on the safe side.
    """
    rest, others = corrected[..., :-1], np.asarray(pairs)[..., :-1]
    usual = others.shape[-1] / np.sum(1.0 / others, axis=-1)
    more = np.maximum(1.0, usual / np.asarray(pairs)[..., -1])
    spread = rest.std(axis=-1, ddof=1) * np.sqrt(more + 1 / rest.shape[-1])
    t = (corrected[..., -1] - rest.mean(axis=-1)) / np.maximum(spread, 1e-12)
    return np.asarray(2 * stdtr(rest.shape[-1] - 1, -np.abs(t)))


def around_mean(values: Array, level: float) -> tuple[Array, Array]:
    """Mean over the last axis, without NaN, and its half-width by Student's t; infinite for one
    value.
    """
    count = np.sum(~np.isnan(values), axis=-1)
    mean, many = np.nanmean(values, axis=-1), np.maximum(count, 2)
    squares = np.nansum((values - mean[..., None]) ** 2, axis=-1)
    half = stdtrit(many - 1, (1 + level) / 2) * np.sqrt(squares / (many - 1) / many)
    return mean, np.where(count > 1, half, np.inf)


def pool_seeds(values: Array) -> tuple[float, float, float]:
    """(p of the F pretest, variance of the mean over sizes, degrees of freedom) when seeds count as
    independent pairs.

    `values`: paired differences (sizes, seeds), NaN where missing. The pretest is for an effect of
    size on them; p is NaN without repeated seeds.
    """
    runs = np.sum(~np.isnan(values), axis=1)
    by_size, total = np.nanmean(values, axis=1), int(runs.sum())
    spare = total - len(runs)
    if spare == 0:
        return float("nan"), float("nan"), 0
    within = float(np.nansum((values - by_size[:, None]) ** 2))
    between = float(np.sum(runs * (by_size - np.nanmean(values)) ** 2))
    p = fdtrc(len(runs) - 1, spare, between / (len(runs) - 1) / max(within / spare, ROUNDING))
    return (
        float(p),
        (between + within) / (total - 1) * float(np.sum(1 / runs)) / len(runs) ** 2,
        total - 1,
    )


def shared_seeds_p(values: Array) -> float:
    """p of H0 "what a seed does to a paired difference (sizes, seeds) is independent from size to
    size": F test of the seeds' main effect.

    Over the seeds that every size has; NaN where they are fewer than 2. The interval takes sizes as
    independent: see docs/results/001-coverage.
    """
    values = values[:, ~np.isnan(values).any(axis=0)]
    n, k = values.shape
    if k < 2:
        return float("nan")
    by_seed = values.mean(axis=0) - values.mean()
    rest = np.sum((values - values.mean(axis=1, keepdims=True) - by_seed) ** 2) / (n - 1)
    return float(fdtrc(k - 1, (n - 1) * (k - 1), n * np.sum(by_seed**2) / max(rest, ROUNDING)))
