"""Comparison of a law with one that contains it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import fdtrc

from analysis.fits.fit import Fit


class Nested(NamedTuple):
    """F test of H0 "the smaller law holds", its degrees of freedom and p, and by how much the
    larger law lowers the corrected Akaike criterion (above 0: it predicts better; -inf with too few
    rows for it).
    """

    F: float
    df: tuple[float, float]
    p: float
    aicc_gain: float


def compare(smaller: Fit, larger: Fit) -> Nested:
    """Compare a ``smaller`` law with one that contains it, fitted by least squares to the same
    rows, such as POWER_LAW with POWER_LAW_OFFSET, or a fit with the same fit with a parameter
    ``fixed``.

    A coefficient that may not be below 0 makes the p conservative. Raises ValueError for other
    losses or rows, and where the larger law has no more free parameters or no rows to spare.
    """
    same = len(smaller.y) == len(larger.y) and all(
        np.array_equal(a, b) for a, b in zip(smaller.rows[1:], larger.rows[1:], strict=True)
    )
    if smaller.loss != larger.loss or smaller.loss.huber or not same:
        raise ValueError("nested laws are compared by least squares, with one loss, on equal rows")
    extra, rows = smaller.freedom - larger.freedom, float(larger.weights.sum())
    if extra < 1 or larger.freedom < 2:
        raise ValueError(
            f"the larger law leaves {larger.freedom:g} degrees of freedom, the smaller "
            f"{smaller.freedom:g}: it must have more free parameters and leave 2 at least"
        )
    ratio = smaller.objective / larger.objective
    F = max(ratio - 1, 0.0) * larger.freedom / extra

    def penalty(free: float) -> float:  # the noise's variance is a parameter too
        spare = rows - free - 2
        return 2 * (free + 1) * rows / spare if spare > 0 else np.inf

    gain = rows * np.log(ratio)
    gain += penalty(rows - smaller.freedom) - penalty(rows - larger.freedom)
    df = (extra, larger.freedom)
    return Nested(F, df, float(fdtrc(*df, F)), float(gain))
