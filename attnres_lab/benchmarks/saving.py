"""Where the rows of a benchmark go: a dated CSV, and for residual connections a plot beside it."""

from __future__ import annotations

import csv
import datetime
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnres_lab.benchmarks.residual import Case

RESULTS = Path("benchmarks/results")


def save_row(name: str, row: dict[str, Any]) -> None:
    """Print a row and write it as ``benchmarks/results/<date>-<name>.csv``, relative to the working
    directory, in place of an earlier one of that day.
    """
    print("\n".join(f"{key:<30} {value}" for key, value in row.items()))
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{datetime.date.today().isoformat()}-{name}.csv").open(
        "w", newline=""
    ) as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)


def environment(case: Case) -> dict[str, Any]:
    """What the numbers depend on."""
    import torch

    name = (
        torch.cuda.get_device_name()
        if case.device == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "date": datetime.date.today().isoformat(),
        "device_name": name,
        "torch": torch.__version__,
        **asdict(case),
    }


def save(case: Case, rows: list[dict[str, Any]], folder: Path) -> Path:
    """Write ``<date>-<case>.csv`` and a plot of the ratios beside it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.date.today().isoformat()}-{case.label}.csv"
    keys = list(environment(case)) + list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows({**environment(case), **row} for row in rows)
    figure = Figure(figsize=(6, 0.5 * len(rows) + 1.2), layout="constrained")
    axes, base = figure.subplots(), rows[0]["median_ms"]
    spread = [
        [(row["median_ms"] - row["quartile1_ms"]) / base for row in rows],
        [(row["quartile3_ms"] - row["median_ms"]) / base for row in rows],
    ]
    axes.barh(
        [row["arm"] for row in rows], [row["ratio"] for row in rows], xerr=spread, color="#4477aa"
    )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set(xlabel=f"time relative to {rows[0]['arm']} (median, quartiles)", title=case.label)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    return path
