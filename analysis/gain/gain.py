"""Compute-equivalent gain: by what factor a variant behaves like its baseline given more
compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import Columns, paired_cells
from analysis.fits.intervals import check_level
from analysis.gain import words
from analysis.gain.estimate import Estimate, GainAtSize, at_size


@dataclass(frozen=True, eq=False)
class Gain(Estimate):
    """Compute-equivalent gain of `variant` over `baseline`, see `compute_equivalent_gain`."""

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Everything a reader must know before quoting the gain."""
        return words.warnings(self)

    def sentence(self, *others: Estimate) -> str:
        """The gain in one sentence; with `others`, gains of the same variant on further axes, all
        of them in one: per FLOP and per second.
        """
        return words.sentence(self, *others)

    def summary(self) -> str:
        """Text that opens with a plain sentence, then the evidence, then every warning."""
        return words.summary(self, self.warnings)

    def plot(self, ax: Any = None) -> Any:
        """Loss against compute: the means of the sizes of both arms, a law through the baseline's
        with the common exponent, the same at the gain times the compute, and an arrow between the
        two lines at the variant's largest size; on `ax` (default: new axes), which it returns.
        """
        from matplotlib import pyplot as plt

        from analysis.plots import loss_against_compute

        ax = plt.subplots()[1] if ax is None else ax
        names = {str(self.baseline): "baseline", str(self.variant): "variant"}
        table = self.per_size
        points = [
            pd.DataFrame({"variant": name, self.x: table[f"x_{arm}"], self.y: table[f"loss_{arm}"]})
            for name, arm in names.items()
        ]
        scale = np.exp(np.mean(np.log(table["loss_baseline"] * table["x_baseline"] ** self.alpha)))
        start = float(table["x_variant"].max())
        reach = {
            str(self.baseline): [*table["x_baseline"], start * self.gain],
            str(self.variant): [*table["x_variant"]],
        }
        lines = {}
        for name, factor in zip(names, (1.0, self.gain), strict=True):
            x = np.geomspace(min(reach[name]), max(reach[name]), 50)
            lines[name] = pd.DataFrame({"x": x, "y": scale * (x * factor) ** -self.alpha})
        arrows = {str(self.variant): (start, self.gain, scale * (start * self.gain) ** -self.alpha)}
        return loss_against_compute(ax, pd.concat(points), lines, arrows, x=self.x, y=self.y)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.summary())}</pre>"


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
    level: float = 0.95,
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
    `data_fingerprint`, `loss_unit` may hold one value only. Intervals hold `level`.

    Raises ValueError, naming rows or columns: bad values, duplicate or incomparable runs, fewer
    than 3 paired sizes, equal x, a loss that does not fall. Source: parallel-line assay (relative
    potency) on log loss; limits by the delta method with t and by Fieller (1954).
    """
    check_level(level)
    cells = paired_cells(runs, variant, baseline, Columns(x, y, by, size, seed))
    gain = Gain(variant, baseline, x, y, level, cells)
    if gain.alpha <= 0:
        raise ValueError(
            f"column {y!r} does not fall with {x!r} (exponent {gain.alpha:.3g}): a gain "
            f"in {x} has no meaning on these runs"
        )
    return gain


def gain_at_size(  # noqa: PLR0913
    runs: pd.DataFrame,
    variant: object,
    alpha: float,
    baseline: object = "baseline",
    *,
    x: str = "flops",
    y: str = "val/loss",
    level: float = 0.95,
) -> list[GainAtSize]:
    """Gain at each size by itself under a given exponent `alpha` of L = A x^-alpha, for tables of
    one or two sizes; `runs`, `baseline`, `x`, `y` and the columns `variant`, `size`, `seed` as in
    `compute_equivalent_gain`.

    The interval, at `level`, holds what the seeds scatter, not the exponent's error. Raises
    ValueError as `compute_equivalent_gain`, and for an exponent that is not above 0.
    """
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}: give the exponent of L = A x^-alpha, above 0")
    check_level(level)
    columns = Columns(x, y, "variant", "size", "seed")
    return at_size(paired_cells(runs, variant, baseline, columns, fewest=1), alpha, level)
