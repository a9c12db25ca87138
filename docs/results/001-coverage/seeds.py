"""Coverage of the gain's interval where a seed may move all sizes alike: python seeds.py prints
the table.
"""

from __future__ import annotations

import numpy as np

from analysis.fits.laws import Array
from analysis.gain.paired import Shift, crossed_seeds, paired_shift

ALPHA, GAIN, SIGMA = 0.055, 1.25, 0.005  # exponent, truth, sd of a run's log loss


def tables(
    sizes: int, seeds: int, tau: float, *, nested: bool, count: int, seed: int = 0
) -> tuple[Shift, Array]:
    """`count` tables' estimates by the interval for independent sizes, and their corrected
    differences (count, sizes, seeds).

    A pair's difference has the sd sigma sqrt(2); a seed adds a common part of sd tau times that:
    the same at all sizes, or, nested, drawn for each size anew.
    """
    rng = np.random.default_rng(seed)
    x = np.linspace(0.0, np.log(30.0), sizes)
    noise = rng.normal(size=(2, count, sizes, seeds)) * SIGMA
    common = rng.normal(size=(count, sizes if nested else 1, seeds)) * tau * SIGMA * np.sqrt(2)
    baseline = -ALPHA * x[:, None] + noise[0]
    variant = -ALPHA * (x[:, None] + np.log(GAIN)) + noise[1] - common
    shift = paired_shift(x, baseline.mean(axis=-1), x, variant.mean(axis=-1))
    return shift, baseline - variant


def coverage(shift: Shift) -> float:
    """Share of intervals that hold the truth."""
    low, high = shift.delta()
    return float(np.mean((low <= np.log(GAIN)) & (np.log(GAIN) <= high)))


def half_width(shift: Shift) -> float:
    """Median half-width in per cent."""
    low, high = shift.delta()
    return float(100 * np.median(np.expm1((high - low) / 2)))


if __name__ == "__main__":
    head = ["sizes", "seeds", "tau", "crossed, sizes as independent", "crossed, two-way", "nested"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for sizes in (3, 5, 8):
        for seeds in (2, 3, 5):
            for tau in (0.0, 0.5, 1.0):
                shift, values = tables(sizes, seeds, tau, nested=False, count=40_000)
                apart, _ = tables(sizes, seeds, tau, nested=True, count=40_000)
                both = (shift, crossed_seeds(shift, values), apart)
                cells = [f"{coverage(s):.3f} ({half_width(s):.1f} %)" for s in both]
                print("| " + " | ".join([str(sizes), str(seeds), f"{tau:g}", *cells]) + " |")
