"""From a tidy table of runs to cells that are paired by size and seed, with every refusal naming
its rows or columns.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.checks import UNFINISHED, filled, numeric, rows_of, some, states
from analysis.fits.laws import Array

ONE_VALUE = {  # columns that may hold only one value among runs that are compared
    "data_fingerprint": "runs of different data or evaluation sets cannot be compared",
    "loss_unit": "losses in different units cannot be compared; convert them to one",
}


@dataclass(frozen=True)
class Columns:
    """Names of the columns; x is None where compute plays no part."""

    x: str | None
    y: str
    by: str
    size: str
    seed: str

    @property
    def axes(self) -> list[str]:
        """The columns that hold numbers."""
        return [column for column in (self.x, self.y) if column is not None]


@dataclass(frozen=True)
class Cells:
    """Logs ``x`` and ``y`` (loss) of the baseline and of the variant, each (sizes, seeds), NaN
    where a pair is missing; sizes by rising x.

    `runs_x`, `runs_y`: all finished runs of the baseline and of the variant.
    """

    sizes: tuple[object, ...]
    x: tuple[Array, Array]
    y: tuple[Array, Array]
    runs_x: tuple[Array, Array]
    runs_y: tuple[Array, Array]
    warnings: tuple[str, ...]

    @property
    def crossed(self) -> bool:
        """Whether sizes share seeds: a label of two or more stands at two or more sizes."""
        there = ~np.isnan(self.y[0])
        return there.shape[1] > 1 and bool((there.sum(axis=0) > 1).any())

    def first(self, count: int) -> Cells:
        """The `count` smallest sizes; `runs_x` and `runs_y` stay whole."""
        there = ~np.isnan(self.y[0][:count]).all(axis=0)  # not the seeds of larger sizes alone
        cut = [(a[:count, there], b[:count, there]) for a, b in (self.x, self.y)]
        return replace(self, sizes=self.sizes[:count], x=cut[0], y=cut[1])

    @cached_property
    def means(self) -> tuple[Array, Array, Array, Array]:
        """Over seeds, (sizes,): x and y of the baseline, x and y of the variant."""
        x_b, y_b, x_v, y_v = (
            np.nanmean(a, axis=1) for a in (self.x[0], self.y[0], self.x[1], self.y[1])
        )
        return x_b, y_b, x_v, y_v


def finished_runs(
    runs: pd.DataFrame, columns: Columns, arms: Iterable[object]
) -> tuple[pd.DataFrame, list[str]]:
    """The finished runs of `arms`, checked, with columns arm, size, seed, x and y, and warnings
    that count the runs without a loss.

    A run is diverged where `status` says so or its loss is not finite. A table without a `seed`
    column holds one seed. Raises ValueError for a missing column, an unknown variant, values that
    are no positive numbers, duplicate cells, mixed data fingerprints and mixed units of loss.
    """
    frame = runs if columns.seed != "seed" or "seed" in runs else runs.assign(seed=0)
    _check_names(frame, columns, arms)
    frame = frame[frame[columns.by].isin(list(arms))]
    _check_labels(frame, columns)
    frame = numeric(frame, columns.axes)
    finished, warnings = _without_a_loss(frame, columns)
    for column in columns.axes:
        bad = finished[~(np.isfinite(finished[column]) & (finished[column] > 0))]
        if len(bad):
            raise ValueError(
                f"{rows_of(bad)}: {column} must be finite and above 0, found {some(bad[column])}"
            )
    repeated = finished[finished.duplicated([columns.by, columns.size, columns.seed], keep=False)]
    if len(repeated):
        what = f"several runs of one {columns.by}, {columns.size} and {columns.seed}"
        raise ValueError(
            f"{rows_of(repeated)}: {what}; keep one of each or average them first (of values "
            "tried, such as learning rates, bowls() takes each cell's best)"
        )
    _one_unit(finished, columns)
    given = {
        "arm": columns.by,
        "size": columns.size,
        "seed": columns.seed,
        "x": columns.x,
        "y": columns.y,
    }
    table = {name: finished[column] for name, column in given.items() if column is not None}
    return pd.DataFrame(table).reset_index(drop=True), warnings


def _check_names(frame: pd.DataFrame, columns: Columns, arms: Iterable[object]) -> None:
    """Whether the columns and the arms that are asked for are there."""
    if "status" in frame and len(frame) and columns.y not in frame:
        states = frame["status"].fillna("without a status").value_counts()
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        raise ValueError(
            f"none of the {len(frame)} runs has a {columns.y} yet ({counts}); look again when some "
            "have finished"
        )
    for column in (columns.by, columns.size, columns.seed, columns.y, columns.x):
        if column is not None and column not in frame:
            raise ValueError(f"no column {column!r} in the runs{_nearest(column, frame.columns)}")
    for arm in arms:
        if not (frame[columns.by] == arm).any():
            raise ValueError(
                f"no run has {columns.by} = "
                f"{arm!r}{_nearest(arm, frame[columns.by].dropna().unique())}"
            )


def _check_labels(frame: pd.DataFrame, columns: Columns) -> None:
    """Whether labels are filled in and one experiment's."""
    filled(frame, (columns.size, columns.seed))
    for column, why in ONE_VALUE.items():
        if column in frame and frame[column].nunique() > 1:
            examples = "; ".join(
                f"{value!r} in row {rows.index[0]}"
                for value, rows in list(frame.groupby(column, observed=True))[:3]
            )
            raise ValueError(
                f"column {column!r} holds {frame[column].nunique()} values, {examples}: {why}"
            )


def paired_cells(
    runs: pd.DataFrame, variant: Any, baseline: Any, columns: Columns, fewest: int = 3
) -> Cells:
    """Pair the runs of two variants by size and seed; names missing cells in the warnings. Raises
    as `finished_runs`, below `fewest` sizes, and from 3 on for an x that is the same at all.
    """
    if variant == baseline:
        raise ValueError(f"variant and baseline are both {variant!r}")
    finished, warnings = finished_runs(runs, columns, [baseline, variant])
    logs = finished.assign(x=np.log(finished["x"]), y=np.log(finished["y"]))
    left, right = (
        logs[logs["arm"] == arm].set_index(["size", "seed"])[["x", "y"]]
        for arm in (baseline, variant)
    )
    both = left.add_suffix("_b").join(right.add_suffix("_v"), how="inner")
    warnings += missing_pairs({baseline: left.index, variant: right.index})
    order = both["x_b"].groupby(level="size").mean().sort_values().index
    if len(order) < fewest:
        plural = "" if len(order) == 1 else "s"
        named = f" ({some(order)})" if len(order) else ""
        needed = "a power law and its error need at least 3" if fewest > 1 else "there is none"
        raise ValueError(
            f"{len(order)} paired {columns.size}{plural}{named}: {needed} at which {baseline!r} "
            "and the variant have finished with the same seed"
        )
    x_b, y_b, x_v, y_v = (
        both[name].unstack("seed").loc[order].to_numpy(float)
        for name in ("x_b", "y_b", "x_v", "y_v")
    )
    if columns.seed in runs and len(order) > 1 and y_b.shape[1] == 1:
        warnings.append(
            f"all {columns.size}s have one and the same {columns.seed}: what it does to all of "
            "them alike is in no interval; give each its own"
        )
    runs_x, runs_y = (
        (left[name].to_numpy(float), right[name].to_numpy(float)) for name in ("x", "y")
    )
    cells = Cells(tuple(order), (x_b, x_v), (y_b, y_v), runs_x, runs_y, tuple(warnings))
    for arm, x in ((baseline, cells.means[0]), (variant, cells.means[2])):
        if fewest > 2 and np.ptp(x) < 1e-9:
            raise ValueError(
                f"column {columns.x!r} is the same at every {columns.size} of {arm}: loss cannot "
                "be set against it"
            )
    return cells


def missing_pairs(cells: dict[Any, pd.Index[Any]]) -> list[str]:
    """Warnings that name the (size, seed) cells only one of two arms has."""
    (a, of_a), (b, of_b) = cells.items()
    missing = {
        other: [f"{size} seed {seed}" for size, seed in own.difference(theirs)]
        for other, own, theirs in ((a, of_b, of_a), (b, of_a, of_b))
    }
    return [
        f"{arm} has no run to pair at {some(names)}: left out of the comparison"
        for arm, names in missing.items()
        if names
    ]


def _without_a_loss(frame: pd.DataFrame, columns: Columns) -> tuple[pd.DataFrame, list[str]]:
    status = states(frame)
    unfinished = status.isin(UNFINISHED)
    diverged = ~unfinished & ((status == "diverged") | ~np.isfinite(frame[columns.y]))
    warnings = []
    for mask, what in (
        (diverged, "diverged, and leaving them out flatters the variant that diverges"),
        (unfinished, "did not finish"),
    ):
        if mask.any():
            cells = [
                f"{arm} {size} seed {seed}"
                for arm, size, seed in frame.loc[
                    mask, [columns.by, columns.size, columns.seed]
                ].to_numpy()
            ]
            warnings.append(f"{mask.sum()} of {len(frame)} runs {what}: {some(cells)}")
    return frame[~diverged & ~unfinished], warnings


def _one_unit(frame: pd.DataFrame, columns: Columns) -> None:
    """Refuse losses whose ratio to bits per byte varies; where none are given, an arm whose losses
    stand at either 1 or 1.44 (nats and bits) times the lowest of their size and nowhere between:
    single ratios of 1.44 come up by chance in assays and in reducible losses.
    """
    loss = frame[columns.y]
    if columns.y == "val/loss" and "val/bpb" in frame and frame["val/bpb"].notna().all():
        bytes_per_token = loss / frame["val/bpb"].astype(float)
        odd = frame[np.abs(bytes_per_token / bytes_per_token.median() - 1) > 0.01]
        if len(odd):
            what = "the ratio of val/loss to val/bpb differs from that of the other runs"
            raise ValueError(f"{rows_of(odd)}: {what}: another unit, tokenizer or evaluation set")
        return
    # among many variants at one size a bad one may well lie there
    if columns.x is None or ("loss_unit" in frame and frame["loss_unit"].notna().all()):
        return
    ratio = loss / loss.groupby(frame[columns.size]).transform("min")
    bits = np.abs(ratio * math.log(2) - 1) < 0.03
    either = (bits | (ratio < 1.1)).groupby(frame[columns.by]).transform("all")
    if (mixed := bits & either).any():
        what = f"{columns.y} is 1.44 times that of other runs of the same {columns.size}"
        raise ValueError(
            f"{rows_of(frame[mixed])}: {what}: bits and nats mixed? Convert to one unit, or give "
            "val/bpb, or one loss_unit, beside it to show that they are not"
        )


def _nearest(name: object, known: Iterable[object]) -> str:
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {some(names)}"
