"""Means over seeds, intervals and differences, as tables and figures of a report show them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def spread(runs: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Columns ``by``, ``mean``, ``low``, ``high``: over the seeds."""
    return (
        runs.groupby(by, dropna=False)[value].agg(mean="mean", low="min", high="max").reset_index()
    )


def interval_text(limits: tuple[float, float]) -> str:
    return f"{limits[0]:.3f} to {limits[1]:.3f}"


def signed(row: Any) -> str:
    """A difference with its interval, where it has one; ``no pair`` without a difference."""
    if np.isnan(row["difference"]):
        return "no pair"
    return f"{row['difference']:+.4f}" + (
        "" if np.isnan(row["low"]) else f" ({row['low']:+.4f} to {row['high']:+.4f})"
    )
