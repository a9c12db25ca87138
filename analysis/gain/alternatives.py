"""What stands beside the paired shift model: two separate laws, bootstraps, and one law with an
irreducible loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import stdtrit

from analysis.fits.laws import Array
from analysis.gain.paired import ROUNDING, line, paired_shift

Definition = Literal["extra", "saving"]
Interval = tuple[float, float]


class GainAt(NamedTuple):
    """Gain at one compute C by separate slopes, its band, and whether a law is read outside
    the compute it was fitted on.
    """

    C: float
    definition: str
    gain: float
    interval: Interval
    extrapolates: bool


class SeparateSlopes(NamedTuple):
    """(A, alpha) of L = A x^-alpha for each arm, the squared residuals of log L, and the gain at
    the largest C by the baseline's slope.
    """

    baseline: tuple[float, float]
    variant: tuple[float, float]
    misfit: float
    largest: GainAt


class Comparison(NamedTuple):
    """A gain by another method, for comparison only."""

    gain: float
    interval: Interval
    method: str


class Offset(NamedTuple):
    """The gain when both arms share one law L = E + A x^-alpha, its interval given E, and the
    squared residuals of log L.
    """

    gain: float
    interval: Interval
    E: float
    alpha: float
    misfit: float


def factors(value: Any, low: Any, high: Any) -> tuple[float, Interval]:
    """A log gain and its limits as factors, infinite where they overflow."""
    with np.errstate(over="ignore"):
        return float(np.exp(value)), (float(np.exp(low)), float(np.exp(high)))


@dataclass(frozen=True)
class SeparateLaws:
    """Least-squares laws log L = log A - alpha log x of each arm over the same sizes, (sizes,)
    each, residuals correlated between the arms. ``shared``: log x and log L of the runs of each
    arm, (sizes, seeds), where sizes share seeds.
    """

    x: tuple[Array, Array]
    y: tuple[Array, Array]
    level: float = 0.95
    shared: tuple[tuple[Array, Array], tuple[Array, Array]] | None = None

    def slopes(self) -> SeparateSlopes:
        """Both laws, and the gain at the largest C."""
        lines = [line(x, y) for x, y in zip(self.x, self.y, strict=True)]
        laws = [
            (float(np.exp(y.mean() - s * x.mean())), float(-s))
            for x, y, (s, _) in zip(self.x, self.y, lines, strict=True)
        ]
        return SeparateSlopes(
            laws[0],
            laws[1],
            float(lines[0][1] + lines[1][1]),
            self.at(float(np.exp(self.x[1].max()))),
        )

    def at(self, C: float, definition: Definition = "extra") -> GainAt:
        """Gain at compute C, with its band by Student's t."""
        if definition not in ("extra", "saving"):
            raise ValueError(f"definition must be 'extra' or 'saving', not {definition!r}")
        if not (np.isfinite(C) and C > 0):
            raise ValueError(f"C must be finite and above 0, found {C!r}")
        # the arm at C, and the arm whose compute is asked for
        here, there = (1, 0) if definition == "extra" else (0, 1)
        value, se, df = self.log_gain(float(np.log(C)), by_arm=there)
        half = stdtrit(df, (1 + self.level) / 2) * se
        read = (
            (self.x[here], np.log(C)),
            (self.x[there], np.log(C) + (value if definition == "extra" else -value)),
        )
        outside = any(not x.min() - 1e-9 <= at <= x.max() + 1e-9 for x, at in read)
        return GainAt(float(C), definition, *factors(value, value - half, value + half), outside)

    def log_gain(self, at: float, by_arm: int) -> tuple[float, float, float]:
        """Height between the lines at log x = `at` over the exponent of arm `by_arm`, its standard
        error (delta method, paired residuals) and degrees of freedom.

        Arm 0, the baseline's exponent, is the extra compute the baseline needs; arm 1, the
        variant's, is what the variant saves.
        """
        centred = [x - x.mean() for x in self.x]
        to_slope = [c / np.sum(c**2) for c in centred]
        to_height = [
            1 / len(x) + (at - x.mean()) * s for x, s in zip(self.x, to_slope, strict=True)
        ]
        fitted = [y.mean() + c * (s @ y) for y, c, s in zip(self.y, centred, to_slope, strict=True)]
        residuals = np.array([y - f for y, f in zip(self.y, fitted, strict=True)])
        alpha = -to_slope[by_arm] @ self.y[by_arm]
        value = (to_height[0] @ self.y[0] - to_height[1] @ self.y[1]) / alpha
        gradient = np.array([to_height[0], -to_height[1]]) / alpha  # by each loss of each arm
        gradient[by_arm] += value / alpha * to_slope[by_arm]
        # by the 2 x 2 covariance of paired residuals
        free = len(self.x[0]) - 2
        variance = np.sum((gradient.T @ residuals) ** 2) / free + ROUNDING * np.sum(gradient**2)
        by_seed, seeds = self._by_seed(gradient)
        df = (variance + by_seed) ** 2 / (variance**2 / free + by_seed**2 / max(seeds - 1, 1))
        return float(value), float(np.sqrt(variance + by_seed)), float(max(df, 1.0))

    def _by_seed(self, gradient: Array) -> tuple[float, int]:
        """The variance that seeds add which move all sizes alike, as in ``crossed_seeds``, and how
        many they are; `gradient`: of the value by each mean loss, (arms, sizes).
        """
        if self.shared is None:
            return 0.0, 1
        moved: Any = 0.0
        for x, y, xs, ys, by in zip(self.x, self.y, *self.shared, gradient, strict=True):
            slope, _ = line(x, y)
            weight = ~np.isnan(ys) * (by / np.sum(~np.isnan(ys), axis=1))[:, None]
            moved = moved + weight * np.nan_to_num(ys - y.mean() - slope * (xs - x.mean()))
        seeds = moved.shape[1]
        return float(seeds / (seeds - 1) * np.sum(moved.sum(axis=0) ** 2)), seeds


def bootstrap_gain(
    x_baseline: Array, y_baseline: Array, x_variant: Array, y_variant: Array, counts: Array
) -> Array:
    """Gains of the paired shift model, (resamples,), from arrays (sizes,) and multiplicities
    (resamples, sizes); NaN where one size was drawn.
    """
    x, y = (x_baseline + x_variant) / 2, (y_baseline + y_variant) / 2
    x, y = x - x.mean(), y - y.mean()
    columns = np.stack([x, y, x * x, x * y, y_baseline - y_variant, x_variant - x_baseline], axis=1)
    mx, my, mxx, mxy, d, gap = (counts @ columns / len(x)).T
    spread = mxx - mx**2
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = np.where(spread > 1e-9 * np.mean(x * x), -(mxy - mx * my) / spread, np.nan)
        return np.asarray(np.exp(d / alpha - gap))


def resamples(n: int, times: int, seed: int) -> Array:
    """Multiplicities of n cases in `times` draws with replacement, (times, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=times).astype(float)


def unpaired_bootstrap(
    x: tuple[Array, Array], y: tuple[Array, Array], at: float, times: int = 2000, seed: int = 0
) -> Array:
    """log gain at log x = `at` by separate fits to cases resampled in each arm, (..., times), the
    usual practice; x (cases,), y (..., cases).
    """
    heights, slopes = [], []
    for arm in (0, 1):
        counts = resamples(len(x[arm]), times, seed + arm)
        centre = x[arm].mean()
        dx, total = x[arm] - centre, len(x[arm])
        mx, mxx = counts @ dx / total, counts @ dx**2 / total
        my, mxy = y[arm] @ counts.T / total, (y[arm] * dx) @ counts.T / total
        spread = mxx - mx**2
        spread = np.where(spread > 1e-9 * np.mean(dx * dx), spread, np.nan)
        slopes.append((mxy - mx * my) / spread)
        heights.append(my + slopes[arm] * (at - centre - mx))
    return np.asarray((heights[0] - heights[1]) / -slopes[0])


def unpaired_gain(
    laws: SeparateLaws, x: tuple[Array, Array], y: tuple[Array, Array], at: float
) -> Comparison:
    """Separate fits at compute `at`, with percentiles of 2000 case resamples of the runs (log x,
    log y) of each arm.
    """
    value, _, _ = laws.log_gain(float(np.log(at)), by_arm=0)
    cuts = [(1 - laws.level) / 2, (1 + laws.level) / 2]
    low, high = np.nanquantile(unpaired_bootstrap(x, y, float(np.log(at))), cuts)
    return Comparison(*factors(value, low, high), "separate fits, case bootstrap")


def shared_offset(
    x_baseline: Array, y_baseline: Array, x_variant: Array, y_variant: Array, *, level: float = 0.95
) -> Offset:
    """One law L = E + A x^-alpha shared by both arms: at each E log(L - E) is a straight line, so
    the paired shift gives the rest.

    log x and log L, (sizes,). E minimises the misfit, the squared residuals of log L over both
    arms, by ever finer scans of [0, smallest loss).
    """
    floor = float(np.exp(min(y_baseline.min(), y_variant.min())))
    low, high, best = -8.0, 0.0, 0  # of log(1 - E / floor); 0 is E = 0
    for _ in range(8):
        scan = np.linspace(low, high, 81)
        e = floor * (1 - np.exp(scan))[:, None]
        z = [np.log(np.exp(y) - e) for y in (y_baseline, y_variant)]
        shift = paired_shift(x_baseline, z[0], x_variant, z[1])
        alpha, theta = shift.alpha[:, None], shift.theta[:, None]
        at = [x_baseline, x_variant + theta]
        intercept = np.mean([z[0] + alpha * at[0], z[1] + alpha * at[1]], axis=(0, 2))[:, None]
        residuals = [
            np.log(e + np.exp(intercept - alpha * a)) - y
            for a, y in zip(at, (y_baseline, y_variant), strict=True)
        ]
        misfit = np.sum(np.square(residuals), axis=(0, 2))
        best = int(np.argmin(misfit))
        low, high = scan[max(best - 1, 0)], scan[min(best + 1, 80)]
    lower, upper = (limit[best] for limit in shift.delta(level))
    return Offset(
        *factors(shift.theta[best], lower, upper),
        float(e[best, 0]),
        float(shift.alpha[best]),
        float(misfit[best]),
    )
