"""The best shape of a depth / width grid of losses, with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.fits.intervals import quantile
from analysis.parabola import Interval, Vertex, lowest_point, regress


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


def grid_optimum(grid: pd.DataFrame) -> GridOptimum:
    """The best shape of one variant's grid of losses: columns and index are the two shape ratios
    (positive), missing cells are NaN.

    For Fig. 7 of Attention Residuals (2603.15031) the columns are d / num_layers and the rows heads
    / num_layers. Raises ValueError: fewer than seven losses, three columns or two rows, ratios that
    are not above 0, or losses that lie where no surface can be told.
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
    if not (column > 0).all():
        raise ValueError("the columns of the grid must be ratios above 0")
    best = int(np.argmin(loss))
    middle = float(np.log(column).mean())
    parabola = np.vander(np.log(column[j]) - middle, 3, increasing=True)
    design = np.c_[parabola, (row - row[best])[:, None] * parabola]
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError("a surface needs two rows of the grid with three losses in each")
    terms, covariance, freedom = regress(design, loss)
    noise = float(np.sqrt(np.sum((loss - design @ terms) ** 2) / freedom))
    smooth = lowest_point(
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
