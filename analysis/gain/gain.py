"""Compute-equivalent gain: by what factor a variant behaves like its baseline given more
compute.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.cells import Cells, Columns, paired_cells
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
from analysis.gain.paired import POOL_ABOVE, Array, Shift, crossed_seeds, paired_shift, pool_seeds
from analysis.gain.words import summary, warnings


class Parallelism(NamedTuple):
    """Student's t of H0 "both arms have the same exponent", its degrees of freedom and two-sided
    p.
    """

    statistic: float
    df: float
    p: float


@dataclass(frozen=True, eq=False)
class Gain:
    """Compute-equivalent gain of `variant` over `baseline`, see `compute_equivalent_gain`.

    `gain` is a factor in x; `interval` its 95 % limits by the delta method with Student's t,
    `fieller` those by Fieller's theorem. `alpha` is the common exponent, `df` the degrees of
    freedom, `pooled` the interval with seeds as pairs (None where an F pretest forbids it), which
    covers too rarely to be quoted alone. `per_size` has a row per size: size, pairs, geometric
    means of x and loss of both arms, `log_ratio` = log L_baseline
    - log L_variant, `gain`, `extrapolates` (no baseline at gain times x).
    """

    variant: object
    baseline: object
    x: str
    y: str
    gain: float
    interval: Interval
    fieller: Interval
    alpha: float
    df: float
    pooled: Comparison | None
    per_size: pd.DataFrame
    parallelism: Parallelism
    warnings: tuple[str, ...]
    cells: Cells = field(repr=False)

    def at(self, C: float, definition: Definition = "extra") -> GainAt:
        """Gain at compute C (units of x) by separate slopes, with its 95 % band and whether it
        extrapolates.

        "extra": the factor by which the baseline's compute must grow to reach the variant's loss at
        C. "saving": the factor by which the variant's compute may shrink at the baseline's loss at
        C. With `parallelism` not rejected the trend over C is noise: quote `gain`.
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
        return alternatives.shared_offset(*self.cells.means) if len(self.per_size) > 3 else None

    def bootstrap(self, n: int = 10_000, seed: int = 0) -> Array:
        """Gains of n resamples of sizes, (n,), NaN where one size alone was drawn: a diagnostic,
        not an interval.
        """
        return alternatives.bootstrap_gain(
            *self.cells.means, alternatives.resamples(len(self.per_size), n, seed)
        )

    def summary(self) -> str:
        """Text that opens with a plain sentence, then the evidence, then every warning."""
        return summary(self)

    def plot(self, ax: Any = None) -> Any:
        """Loss against compute of both arms with the gain; the axes."""
        return import_module("analysis.plots").gain(self, ax)  # matplotlib only when asked

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.summary())}</pre>"

    @cached_property
    def _laws(self) -> SeparateLaws:
        x_b, y_b, x_v, y_v = self.cells.means
        return SeparateLaws((x_b, x_v), (y_b, y_v))


def compute_equivalent_gain(  # noqa: PLR0913
    runs: pd.DataFrame,
    variant: object,
    baseline: object = "baseline",
    *,
    x: str = "flops",
    y: str = "val/loss",
    by: str = "variant",
    size: str = "size",
    seed: str = "seed",
) -> Gain:
    """Gain of `variant` over `baseline` from a tidy table, a row per run: y (loss, any one unit)
    against x (FLOPs, seconds, device-hours, tokens).

    Runs are paired by `size` and `seed`, so what a size or a seed does to both arms cancels; sizes
    are the replicates. The arms may differ in x at one size (a variant that costs a few percent
    more): pairs are brought to equal x along the common slope, see
    `analysis.gain.paired.paired_shift`.
    Seeds that differ from size to size are independent; where sizes share them, their common effect
    is in the interval, see `analysis.gain.paired.crossed_seeds`. A
    `status` column, if there, tells diverged and unfinished runs, counted in `warnings`;
    `data_fingerprint`, `loss_unit` may hold one value only.

    Raises ValueError, naming rows or columns: bad values, duplicate or incomparable runs, fewer
    than 3 paired sizes, equal x, a loss that does not fall. Source: parallel-line assay (relative
    potency) on log loss; limits by the delta method with t and by Fieller (1954).
    """
    cells = paired_cells(runs, variant, baseline, Columns(x, y, by, size, seed))
    shift = paired_shift(*cells.means)
    if cells.crossed:
        shift = crossed_seeds(shift, _corrected(cells, shift))
    if shift.alpha <= 0:
        raise ValueError(
            f"column {y!r} does not fall with {x!r} (exponent {float(shift.alpha):.3g}): a gain "
            f"in {x} has no meaning on these runs"
        )
    gain = Gain(
        variant,
        baseline,
        x,
        y,
        *factors(shift.theta, *shift.delta()),
        fieller=factors(shift.theta, *shift.fieller())[1],
        alpha=float(shift.alpha),
        df=float(shift.df),
        pooled=_pooled(cells, shift),
        per_size=_per_size(cells, shift),
        parallelism=Parallelism(
            float(shift.slope_t), float(shift.slope_df), float(shift.slope_p())
        ),
        warnings=cells.warnings,
        cells=cells,
    )
    return replace(gain, warnings=warnings(gain))


def _corrected(cells: Cells, shift: Shift) -> Array:
    """Log ratios of the losses of each pair at equal x, (sizes, seeds)."""
    return cells.y[0] - cells.y[1] - float(shift.alpha) * (cells.x[1] - cells.x[0])


def _pooled(cells: Cells, shift: Shift) -> Comparison | None:
    p, variance, df = pool_seeds(_corrected(cells, shift))
    if not p > POOL_ABOVE:
        return None
    at_run_level = replace(shift, mean_variance=np.asarray(variance), df=np.asarray(df))
    return Comparison(
        *factors(shift.theta, *at_run_level.delta()),
        f"seeds pooled as independent pairs, F pretest p = {p:.2g}",
    )


def _per_size(cells: Cells, shift: Shift) -> pd.DataFrame:
    x_b, y_b, x_v, y_v = cells.means
    table = {
        "size": cells.sizes,
        "pairs": np.sum(~np.isnan(cells.y[0]), axis=1),
        "x_baseline": np.exp(x_b),
        "x_variant": np.exp(x_v),
        "loss_baseline": np.exp(y_b),
        "loss_variant": np.exp(y_v),
        "log_ratio": y_b - y_v,
        "gain": np.exp((y_b - y_v) / shift.alpha - (x_v - x_b)),
        "extrapolates": (x_v + shift.theta > x_b.max() + 1e-9)
        | (x_v + shift.theta < x_b.min() - 1e-9),
    }
    return pd.DataFrame(table)
