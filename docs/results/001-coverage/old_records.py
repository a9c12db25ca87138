"""The gains of records 003, 011 and 012 by the two-way interval, as far as their tables go: python
old_records.py prints a table.

The losses of single runs were not kept, but each table has the mean of three paired differences and
its 95 % interval at every size, so their sd. What the seeds do to all sizes alike, V_seed of
``analysis.gain.paired.crossed_seeds``, is then between 0 (the seeds' effects at the sizes cancel)
and what it is where they all fall together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analysis.fits.laws import Array
from analysis.gain.paired import Shift, crossed_seeds, paired_shift
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.spec import load_spec

RESULTS = Path(__file__).parents[1]
SEEDS, T = 3, 4.302653  # Student's t of 2 degrees of freedom at .975
NUMBER = r"[-+]?\d+\.\d+"
PAIR = re.compile(rf"({NUMBER}) \(({NUMBER}) to ({NUMBER})\)")
#: record, sweep and scale whose sizes it has, x, columns of the differences of full and block8
RECORDS = (
    ("003-scaling-nano", "flops", (5, 6)),
    ("012-scaling-half-rate-nano", "flops", (4, 5)),
    ("011-wall-clock-nano", "seconds", (5, 6)),
)


class Range(NamedTuple):
    """(low, gain, high) with the sizes as independent, and of the two-way interval at its narrowest
    and at its widest.
    """

    old: tuple[float, float, float]
    narrowest: tuple[float, float]
    widest: tuple[float, float]


def compute() -> dict[tuple[str, str], float]:
    """Training FLOPs by variant and size: those of the plan."""
    plan = Plan(load_spec(Path(__file__).parents[3] / "sweeps" / "scaling.yaml", "nano"))
    return {(t.entry.variant, t.entry.size): t.entry.flops or 0.0 for t in plan.known()}


def rows(record: str) -> list[list[str]]:
    """The cells of the table that has a row a size."""
    lines = (RESULTS / record / "README.md").read_text().splitlines()
    return [[c.strip() for c in ln.strip("|").split("|")] for ln in lines if ln.startswith("| d")]


def ranges(record: str, x: str, column: int, variant: str) -> Range:
    """From the means and intervals of one column of differences."""
    table, spent = rows(record), compute()
    base = [next(c for c in cells if "±" in c).split(" ")[0] for cells in table]
    y = np.array([float(value) for value in base])
    parts = [PAIR.search(cells[column]) for cells in table]
    difference, low, high = np.array([[float(v) for v in p.groups()] for p in parts if p]).T
    if x == "flops":
        logs = [np.log([spent[arm, cells[0]] for cells in table]) for arm in ("baseline", variant)]
    else:
        logs = [np.log([float(cells[1]) for cells in table])] * 2
    shift = paired_shift(logs[0], np.log(y), logs[1], np.log(y + difference))
    sd = (high - low) / 2 / T * np.sqrt(SEEDS) / y  # of a pair's log ratio over seeds
    ratio = -np.log1p(difference / y) - shift.alpha * (logs[1] - logs[0])
    low, high = _factors(shift)
    by_width = sorted(_two_way(shift, ratio, sd), key=lambda limits: limits[1] / limits[0])
    return Range((low, float(np.exp(shift.theta)), high), by_width[0], by_width[-1])


def _two_way(shift: Shift, ratio: Array, sd: Array) -> list[tuple[float, float]]:
    """The interval for every V_seed from 0, where the seeds' effects at the sizes cancel, to where
    they all fall together. Its degrees of freedom fall too, so the widest may lie between.
    """
    effects = np.array([1.0, 0.0, -1.0]) * sd[:, None]  # mean 0, sd as given
    shares = np.sqrt(np.linspace(0.0, 1.0, 51))
    return [_factors(crossed_seeds(shift, ratio[:, None] + a * effects)) for a in shares]


def _factors(shift: Shift) -> tuple[float, float]:
    low, high = np.exp(shift.delta())
    return float(low), float(high)


if __name__ == "__main__":
    print("| record | arm | gain, sizes as independent | two-way, at least | two-way, at most |")
    print("|---|---|---|---|---|")
    for record, x, columns in RECORDS:
        for variant, column in zip(("full", "block8"), columns, strict=True):
            old, narrow, wide = ranges(record, x, column, variant)
            cells = [f"{old[1]:.2f} ({old[0]:.2f} to {old[2]:.2f})"]
            cells += [f"{low:.2f} to {high:.2f}" for low, high in (narrow, wide)]
            print(f"| {record[:3]}, per {x} | {variant} | " + " | ".join(cells) + " |")
