"""A compute-equivalent gain as numbers: the paired shift, and all that can be asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.cells import Cells
from analysis.fits.laws import Array
from analysis.gain import alternatives
from analysis.gain.alternatives import (
    Comparison,
    Definition,
    GainAt,
    Interval,
    Offset,
    SeparateLaws,
    SeparateSlopes,
    factors,
)
from analysis.gain.paired import (
    POOL_ABOVE,
    Shift,
    around_mean,
    crossed_seeds,
    foretold,
    paired_shift,
    pool_seeds,
)


class Parallelism(NamedTuple):
    """Student's t of H0 "both arms have the same exponent", its degrees of freedom and two-sided
    p.
    """

    statistic: float
    df: float
    p: float


class Equivalence(NamedTuple):
    """What a gain says of a claimed one, by one-sided t tests: `p` of "it is not within a factor
    1 + `within` of the claim, either way", `p_inferior` of "it is below the claim by more than
    that". `text` says it in a sentence.
    """

    claim: float
    within: float
    p: float
    p_inferior: float
    text: str


class Holdout(NamedTuple):
    """The gain of all sizes but the largest, the one observed at the largest under the same
    exponent, and p of H0 "both are one number".
    """

    size: object
    gain: float
    interval: Interval
    observed: float
    p: float


@dataclass(frozen=True, eq=False)
class Estimate:
    """The gain of `variant` over `baseline` in the column x, on the loss in the column y, from
    paired `cells`; intervals hold `level`.
    """

    variant: object
    baseline: object
    x: str
    y: str
    level: float
    cells: Cells = field(repr=False)

    @cached_property
    def shift(self) -> Shift:
        """log gain and its errors; with the seeds' part where sizes share seeds."""
        shift = paired_shift(*self.cells.means)
        return crossed_seeds(shift, self._corrected(shift)) if self.cells.crossed else shift

    @property
    def gain(self) -> float:
        """The factor in x."""
        return float(np.exp(self.shift.theta))

    @property
    def interval(self) -> Interval:
        """By the delta method with Student's t."""
        return factors(0.0, *self.shift.delta(self.level))[1]

    @property
    def fieller(self) -> Interval:
        """By Fieller's theorem."""
        return factors(0.0, *self.shift.fieller(self.level))[1]

    @property
    def alpha(self) -> float:
        """The exponent that both arms share."""
        return float(self.shift.alpha)

    @property
    def df(self) -> float:
        """Degrees of freedom of `interval`."""
        return float(self.shift.df)

    @property
    def parallelism(self) -> Parallelism:
        """Test of equal exponents."""
        s = self.shift
        return Parallelism(float(s.slope_t), float(s.slope_df), float(s.slope_p()))

    @cached_property
    def per_size(self) -> pd.DataFrame:
        """A row per size: size, pairs, geometric means of x and loss of both arms, `log_ratio` =
        log L_baseline - log L_variant, `gain`, `extrapolates` (no baseline at gain times x).
        """
        x_b, y_b, x_v, y_v = self.cells.means
        reached = x_v + self.shift.theta
        table = {
            "size": self.cells.sizes,
            "pairs": np.sum(~np.isnan(self.cells.y[0]), axis=1),
            "x_baseline": np.exp(x_b),
            "x_variant": np.exp(x_v),
            "loss_baseline": np.exp(y_b),
            "loss_variant": np.exp(y_v),
            "log_ratio": y_b - y_v,
            "gain": np.exp((y_b - y_v) / self.alpha - (x_v - x_b)),
            "extrapolates": (reached > x_b.max() + 1e-9) | (reached < x_b.min() - 1e-9),
        }
        return pd.DataFrame(table)

    @cached_property
    def pooled(self) -> Comparison | None:
        """The interval with seeds as pairs, None where an F pretest forbids it; it covers too
        rarely to be quoted alone.
        """
        p, variance, df = pool_seeds(self._corrected(self.shift))
        if not p > POOL_ABOVE:
            return None
        shift = replace(self.shift, mean_variance=np.asarray(variance), df=np.asarray(df))
        return Comparison(
            *factors(shift.theta, *shift.delta(self.level)),
            f"seeds pooled as independent pairs, F pretest p = {p:.2g}",
        )

    def equivalent_to(self, claim: float, within: float = 0.05) -> Equivalence:
        """Is the gain within a factor 1 + `within` of a claimed one, either way (two one-sided t
        tests, Schuirmann 1987), or at least not below it by more than that (non-inferiority)?
        Raises ValueError for a claim or margin that is not above 0.
        """
        if not (claim > 0 and within > 0):
            raise ValueError(f"claim and within must be above 0, not {claim} and {within}")
        p, p_inferior = map(float, self.shift.not_within(claim, within))
        most = 1 - self.level
        if p < most:
            what = f"is within {within:.0%} of {claim:g} (p = {p:.2g})"
        elif p_inferior < most:
            what = f"is not below {claim:g} by more than {within:.0%} (p = {p_inferior:.2g})"
        else:
            what = f"is not shown to be within {within:.0%} of {claim:g} (p = {p:.2g})"
        return Equivalence(claim, within, p, p_inferior, f"The gain {self.gain:.3g} {what}.")

    def without_largest(self) -> Holdout:
        """Do the smaller sizes foretell the largest? p is below .05 in .05 of tables where they do,
        and in up to .16 where the noise grows with size (docs/results/001-coverage). Raises
        ValueError below 4 sizes.
        """
        count = len(self.cells.sizes)
        if count < 4:
            raise ValueError(f"{count} sizes: leaving the largest out needs at least 4")
        rest = replace(self, cells=self.cells.first(count - 1))
        corrected = self._corrected(rest.shift)
        means, pairs = np.nanmean(corrected, axis=1), np.sum(~np.isnan(corrected), axis=1)
        observed = float(np.exp(means[-1] / rest.alpha))
        p = float(foretold(means, pairs))
        return Holdout(self.cells.sizes[-1], rest.gain, rest.interval, observed, p)

    def at(self, C: float, definition: Definition = "extra") -> GainAt:
        """Gain at compute C (units of x) by separate slopes, with its band at `level` and whether
        it extrapolates.

        `definition` "extra": the factor by which the baseline's compute must grow to reach the
        variant's loss at C. "saving": the factor by which the variant's compute may shrink at the
        baseline's loss at C. With `parallelism` not rejected the trend over C is noise: quote
        `gain`. Raises ValueError for another definition, and for C that is not finite and above 0.
        """
        return self._laws.at(C, definition)

    @property
    def separate_slopes(self) -> SeparateSlopes:
        """Separate laws of the two arms. Never read a trend off them alone: an irreducible loss
        bends both, see `offset`.
        """
        return self._laws.slopes()

    @cached_property
    def unpaired(self) -> Comparison:
        """What ignoring the pairs gives: separate fits at the geometric-mean C, percentiles of 2000
        case resamples per arm.
        """
        return alternatives.unpaired_gain(
            self._laws, self.cells.runs_x, self.cells.runs_y, float(np.exp(np.mean(self._laws.x)))
        )

    @cached_property
    def offset(self) -> Offset | None:
        """The gain under one shared law with an irreducible loss; None below 4 sizes. A check of
        `gain`, which needs no E.
        """
        if len(self.per_size) < 4:
            return None
        found = alternatives.shared_offset(*self.cells.means, level=self.level)
        if not self.cells.crossed:
            return found
        # given E it is a paired shift of log(L - E), whose seeds sizes share
        with np.errstate(divide="ignore", invalid="ignore"):
            above = [np.log(np.maximum(np.exp(y) - found.E, 0.0)) for y in self.cells.y]
        known = np.isfinite(above[0]) & np.isfinite(above[1])
        y = (np.where(known, above[0], np.nan), np.where(known, above[1], np.nan))
        rest = replace(self, cells=replace(self.cells, y=y))
        return found._replace(interval=rest.interval)

    def bootstrap(self, n: int = 10_000, seed: int = 0) -> Array:
        """Gains of n resamples of sizes drawn with `seed`, (n,), NaN where one size alone was
        drawn: a diagnostic, not an interval.
        """
        return alternatives.bootstrap_gain(
            *self.cells.means, alternatives.resamples(len(self.per_size), n, seed)
        )

    @cached_property
    def _laws(self) -> SeparateLaws:
        x_b, y_b, x_v, y_v = self.cells.means
        shared = (self.cells.x, self.cells.y) if self.cells.crossed else None
        return SeparateLaws((x_b, x_v), (y_b, y_v), self.level, shared)

    def _corrected(self, shift: Shift) -> Array:
        """Log ratios of the losses of each pair at equal x, (sizes, seeds)."""
        cells = self.cells
        return cells.y[0] - cells.y[1] - float(shift.alpha) * (cells.x[1] - cells.x[0])


class GainAtSize(NamedTuple):
    """Gain at one size under a given exponent; `interval` by Student's t over the pairs, (0, inf)
    for one pair.
    """

    size: object
    gain: float
    interval: Interval
    pairs: int
    alpha: float


def at_size(cells: Cells, alpha: float, level: float) -> list[GainAtSize]:
    """The gain at each size of `cells` by itself; the error is that of its seeds alone."""
    found = []
    for i, size in enumerate(cells.sizes):
        ratio = cells.y[0][i] - cells.y[1][i] - alpha * (cells.x[1][i] - cells.x[0][i])
        value, half = around_mean(ratio / alpha, level)
        pairs = int(np.sum(~np.isnan(ratio)))
        found.append(GainAtSize(size, *factors(value, value - half, value + half), pairs, alpha))
    return found
