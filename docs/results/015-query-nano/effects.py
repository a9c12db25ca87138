"""Losses, effects and figure of this record from the runs of ``sweeps/query.yaml --scale nano``:
``python effects.py <sweep folder>``, or without it from the losses kept here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from analysis import plots
from analysis.runs import load_runs

HERE = Path(__file__).parent
LEVELS = {  # column: what counts as high
    "start": ("model.residual.query_std", 0.1),
    "decay": ("optim.query_weight_decay", 0.1),
    "Muon": ("optim.query_optimizer", "muon"),
    "rate / 4": ("optim.residual_lr_mult", 0.25),
}
ALIASES = {"start x decay": (0, 1), "start x Muon": (0, 2), "decay x Muon": (1, 2)}


def kept(folder: Path) -> pd.DataFrame:
    """Family, levels (0 or 1), seed and loss of every finished run."""
    runs = load_runs(folder)
    runs = runs[runs["status"] == "finished"]
    rows = pd.DataFrame({"family": runs["model.residual.name"], "seed": runs["seed"]})
    for name, (column, high) in LEVELS.items():
        rows[name] = (runs[column] == high).astype(int)
    return rows.assign(loss=runs["val/loss"])


def effects(rows: pd.DataFrame) -> pd.DataFrame:
    """Least squares on the mean, the seed, the factors and the pairs of interactions; an effect is
    high less low, with its 95 % interval.
    """
    signs = 2 * rows[list(LEVELS)].to_numpy() - 1
    pairs = [signs[:, a] * signs[:, b] for a, b in ALIASES.values()]
    seeds = np.where(rows["seed"] == rows["seed"].min(), -1, 1)
    design = np.column_stack([np.ones(len(rows)), seeds, signs, *pairs])
    found, (squares,), _, _ = np.linalg.lstsq(design, rows["loss"].to_numpy(), rcond=None)
    free = len(rows) - design.shape[1]
    error = 2 * np.sqrt(squares / free / len(rows))
    half = stats.t.ppf(0.975, free) * error
    table = pd.DataFrame({"effect": 2 * found[2:]}, index=[*LEVELS, *ALIASES])
    p = 2 * stats.t.sf(np.abs(table["effect"]) / error, free)
    return table.assign(low=table["effect"] - half, high=table["effect"] + half, p=p)


def main(folder: Path | None) -> None:
    """Keep, print, draw."""
    path = HERE / "runs.csv"
    if folder:
        kept(folder).to_csv(path, index=False, float_format="%.6g")
    runs = pd.read_csv(path)
    baseline = runs[runs["family"] == "baseline"].set_index("seed")["loss"]
    figure, axes = plots.new_axes(9, 2.8, columns=2)
    for family, ax in zip(("full", "block"), axes, strict=True):
        rows = runs[runs["family"] == family]
        rows = rows.assign(difference=rows["loss"] - rows["seed"].map(baseline))
        cells = rows.groupby(list(LEVELS))[["loss", "difference"]].agg(["mean", "min", "max"])
        print(f"{family}, baseline {baseline.mean():.4f}\n{cells.round(4)}\n")
        table = effects(rows)
        print(table.round(4), "\n")
        at = np.arange(len(table))[::-1]
        ax.errorbar(
            table["effect"],
            at,
            xerr=(table["high"] - table["low"]) / 2,
            fmt="o",
            color="black",
            capsize=3,
        )
        ax.axvline(0, color="grey", linewidth=0.8)
        ax.set_yticks(at, table.index)
        ax.set(title=family, xlabel="effect on the loss (nats per byte)")
        ax.locator_params("x", nbins=5)
    plots.save(figure, HERE / "effects.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
