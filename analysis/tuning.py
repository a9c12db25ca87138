"""Loss against a tuned value, cell by cell: the minimum of each bowl, its error, what tuning left
on the table, and the law of the best value.

Curvatures are in nats per octave squared, errors in octaves (factors of two), as in a bowl
L = minimum + curvature * log2(value / best)**2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import ONE_VALUE
from analysis.checks import FINISHED, filled, numeric, states
from analysis.fits.laws import Array
from attnres_lab.runs.tuning import vertex

LOST = ("diverged", "pruned")


@dataclass(frozen=True)
class Bowls:
    """What the tried values of ``key`` say of each cell.

    ``rows``, a row per cell: the labels; ``best`` value; ``loss`` there; ``kind`` (``vertex`` of
    the parabola through the lowest and its neighbours; ``neighbour``: the lowest itself, beside a
    value that diverged; ``edge``: the lowest itself, at the end of what was tried; ``none``: all
    diverged); ``curvature``; ``error`` (sd of log2 best) and ``debt`` (nats that this error costs
    on average), NaN where ``sigma``, the sd of a run, is unknown; ``tried`` values and ``runs``.
    ``minima``: a row per cell at its minimum, for ``compute_equivalent_gain``; other numbers are
    those of the lowest tried value.
    """

    key: str
    labels: tuple[str, ...]
    sigma: float
    rows: pd.DataFrame
    minima: pd.DataFrame

    def law(self, size: str = "params") -> pd.DataFrame:
        """By each label but the last: ``exponent`` and its ``stderr`` of best value against
        ``size`` (a column of the runs), by least squares of the logs; ``sizes`` used: those whose
        best value lies inside what was tried.

        Raises ValueError where the runs have no such column of numbers.
        """
        if size not in self.minima or not pd.api.types.is_numeric_dtype(self.minima[size]):
            raise ValueError(f"no column {size!r} of numbers: name the sizes' own, law('flops')")
        own = self.minima[list(dict.fromkeys([*self.labels, size]))]
        heads = list(self.labels[:-1])
        places = self.rows.merge(own, on=list(self.labels))
        found = []
        places = places[~places["kind"].isin(["none", "edge"])]
        parts: Any = places.groupby(heads, sort=False, observed=True) if heads else [((), places)]
        for names, part in parts:
            row: dict[str, Any] = dict(zip(heads, names, strict=True)) | {"sizes": len(part)}
            x, y = np.log(part[size].to_numpy(float)), np.log(part["best"].to_numpy(float))
            if len(part) > 2 and np.ptp(x) > 0:
                dx = x - x.mean()
                slope = float(dx @ y / (dx @ dx))
                rest = y - y.mean() - slope * dx
                row["exponent"] = slope
                row["stderr"] = float(np.sqrt(rest @ rest / (len(x) - 2) / (dx @ dx)))
            found.append(row)
        return pd.DataFrame(found)


def bowls(
    runs: pd.DataFrame,
    key: str,
    *,
    labels: Sequence[str] = ("variant", "size"),
    y: str = "val/loss",
    sigma: float | None = None,
) -> Bowls:
    """The bowl of every cell of a finished table: anyone's, with a column of positive values
    ``key``, ``labels`` that make a cell, and a loss ``y``; seeds are averaged.

    ``sigma``: sd of a run, for errors; by default that of repeated runs of one cell and value, over
    all of them. Runs that diverged or were pruned count as worse than any, unfinished ones not.
    Raises ValueError for a missing column, an empty label, an unknown status, values that are not
    positive numbers, and a cell of several data sets or units of loss.
    """
    if missing := {key, y, *labels} - set(runs):
        raise ValueError(f"no column {', '.join(map(repr, sorted(missing)))} in these runs")
    runs = runs.reset_index(drop=True)  # of tables laid one under the other the index repeats
    status = states(runs)
    runs = numeric(runs[status.isin([*FINISHED, *LOST])], [key, y])
    filled(runs, labels)
    lost = status.loc[runs.index].isin(LOST) | ~np.isfinite(runs[y])
    runs = runs.assign(**{y: runs[y].mask(lost, np.inf)})
    if bad := sorted(set(runs.loc[~(runs[key] > 0), key].astype(str))):
        raise ValueError(f"column {key!r}: {', '.join(bad[:5])}: only positive values have a bowl")
    sigma = spread_of_runs(runs[~lost], [*labels, key], y) if sigma is None else sigma
    rows, minima = [], []
    for names, cell in runs.groupby(list(labels), sort=False, observed=True):
        head = dict(zip(labels, names, strict=True))
        found, lowest = _bowl(cell, key, y, sigma)
        rows.append(head | found)
        if len(lowest):
            # other losses are those of runs, not of the parabola's minimum
            others = [c for c in lowest if str(c).startswith(("val/", "train/"))]
            numbers = lowest.drop(columns=others).select_dtypes("number").mean().to_dict()
            numbers.pop("seed", None)
            numbers |= {key: found["best"], y: found["loss"]}
            minima.append(head | numbers | _of_all(cell) | head)  # a label may be a number
    return Bowls(key, tuple(labels), sigma, pd.DataFrame(rows), pd.DataFrame(minima))


def _of_all(cell: pd.DataFrame) -> dict[str, Any]:
    """What a gain wants to be one value over all cells."""
    found: dict[str, Any] = {}
    for column, why in ONE_VALUE.items():
        if column in cell and cell[column].nunique():
            if cell[column].nunique() > 1:
                raise ValueError(f"column {column!r} holds several values in a cell: {why}")
            found[column] = cell[column].dropna().iloc[0]
    return found


def spread_of_runs(runs: pd.DataFrame, same: Sequence[str], y: str = "val/loss") -> float:
    """Sd of a run over the seeds, pooled over all settings ``same``; NaN where none is repeated."""
    groups = runs.groupby(list(same))[y]
    spare = len(runs) - groups.ngroups
    squares = float(((runs[y] - groups.transform("mean")) ** 2).sum())
    return float(np.sqrt(squares / spare)) if spare > 0 else float("nan")


def vertex_error(x: Array, y: Array, sigma: Array) -> float:
    """Sd of the vertex of the parabola through three points (3,), by the delta method, for noise of
    sd ``sigma`` (3,) in ``y``; sigma / (curvature step sqrt(8)) about the middle of equal steps.
    """
    h, k = x[1] - x[0], x[2] - x[1]
    slope = np.array([-1 / h, 1 / h, 0])
    bend = np.array([1 / h, -(h + k) / (h * k), 1 / k]) / (h + k)
    first, curvature = slope @ y, bend @ y
    if curvature <= 0:
        return float("inf")
    gradient = (first * bend / curvature - slope) / (2 * curvature)
    return float(np.sqrt(np.sum((gradient * sigma) ** 2)))


def _bowl(
    cell: pd.DataFrame, key: str, y: str, sigma: float
) -> tuple[dict[str, Any], pd.DataFrame]:
    """A row of ``Bowls``, and the runs at the lowest value tried."""
    by_value = cell.groupby(key)[y].agg(["mean", "count"]).sort_index()
    values, losses = by_value.index.to_numpy(float), by_value["mean"].to_numpy(float)
    row = {"best": np.nan, "loss": np.nan, "kind": "none", "curvature": np.nan}
    row |= {"error": np.nan, "debt": np.nan, "tried": len(values), "runs": len(cell)}
    if not np.isfinite(losses).any():
        return row, cell.iloc[:0]
    best = int(np.argmin(losses))
    row |= {"best": values[best], "loss": losses[best], "kind": "edge"}
    if 0 < best < len(values) - 1:
        near = slice(best - 1, best + 2)
        x, some = np.log2(values[near]), losses[near]
        row["kind"] = "neighbour"
        if np.isfinite(some).all():
            at, minimum, curvature = vertex(tuple(x), tuple(some))
            error = vertex_error(x, some, sigma / np.sqrt(by_value["count"].to_numpy()[near]))
            row |= {"best": 2**at, "loss": minimum, "kind": "vertex", "curvature": curvature}
            row |= {"error": error, "debt": curvature * error**2}
    return row, cell[cell[key] == values[best]]
