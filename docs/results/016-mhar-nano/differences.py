"""Losses, differences and figure of this record from the runs of ``sweeps/mhar.yaml --scale nano``:
``python differences.py <sweep folder>``, or without it from the losses kept here.
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
PAIRS = {  # arm and what it is compared with
    "full - baseline": ("full", "baseline"),
    "their recipe - ours (full)": ("full, theirs", "full"),
    "4 heads - 1": ("heads", "full"),
    "heads - baseline": ("heads", "baseline"),
}


def kept(folder: Path) -> pd.DataFrame:
    """Arm, size, rate, seed and loss of every finished run."""
    runs = load_runs(folder)
    runs = runs[runs["status"] == "finished"]
    arm = runs["variant"].replace(["full-h4", "full-hkv"], "heads")
    arm = arm.mask(runs["optim.query_weight_decay"] > 0, arm + ", theirs")
    columns = {"size": runs["size"], "rate": runs["optim.lr"], "seed": runs["seed"]}
    return pd.DataFrame({"arm": arm, **columns, "loss": runs["val/loss"]})


def interval(values: pd.Series) -> str:
    """Mean with its 95 % interval (Student's, the values as independent)."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std() / np.sqrt(len(values))
    mean = values.mean()
    return f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f}), {len(values)} values"


def main(folder: Path | None) -> None:
    """Keep, print, draw."""
    path = HERE / "runs.csv"
    if folder:
        kept(folder).to_csv(path, index=False, float_format="%.6g")
    runs = pd.read_csv(path)
    losses = runs.pivot(index=["size", "rate", "seed"], columns="arm", values="loss")
    print(losses.groupby(["size", "rate"]).mean().round(4), "\n")
    table = pd.DataFrame({name: losses[a] - losses[b] for name, (a, b) in PAIRS.items()})
    for name in PAIRS:
        print(name, table[name].unstack("seed").round(4).to_string(), sep="\n")
    for name in PAIRS:
        pairs = table[name].dropna()
        # a size and seed has the same batches at both rates
        print(f"{name}: {interval(pairs)}; {interval(pairs.groupby(['size', 'seed']).mean())}")
    figure, axes = plots.new_axes(12, 2.8, columns=len(PAIRS))
    cells = [f"{size}, {rate:g}" for size, rate, _ in table.index]
    for name, ax in zip(PAIRS, axes, strict=True):
        ax.plot(table[name], cells, "o", color="black", fillstyle="none")
        ax.axvline(0, color="grey", linewidth=0.8)
        ax.set(title=name, xlabel="nats per byte")
        ax.tick_params("y", labelleft=ax is axes[0])
    plots.save(figure, HERE / "differences.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
