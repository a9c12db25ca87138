"""The README's figure, from the runs of records 002 and 006: ``python docs/images/evidence.py``,
with $ATTNRES_RUNS where they are.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from matplotlib import rcParams

from analysis import load_depth, load_runs, plots
from analysis.runs import runs_folder


def main() -> None:
    """Left: loss by learning rate; right: RMS of the hidden state by sublayer, mean over the
    seeds.
    """
    runs = load_runs("learning_rate-nano")
    points = (
        runs.groupby(["variant", "optim.lr"])["val/loss"]
        .agg(mean="mean", low="min", high="max")
        .reset_index()
    )
    points["best"] = points["mean"] == points.groupby("variant")["mean"].transform("min")
    profiles = []
    for trial in (runs_folder() / "sweeps" / "dynamics-nano" / "trials").iterdir():
        variant = json.loads((trial / "environment.json").read_text())["variant"]
        profiles.append(load_depth(trial)[-1].profile["input_rms"].rename(variant))
    rms = pd.concat(profiles, axis=1).T.groupby(level=0).mean().T
    rcParams.update(plots.PRINT)
    figure, (left, right) = plots.new_axes(10, 3.6, columns=2)
    plots.learning_rate_bowls(left, points.rename(columns={"optim.lr": "x"}))
    left.set_title("each variant has its own best learning rate")
    plots.by_depth(
        right, {str(variant): rms[variant] for variant in rms}, "RMS of the hidden state"
    )
    right.set_title("depth attention bounds the hidden state")
    plots.save(figure, Path(__file__).parent / "evidence.png")


if __name__ == "__main__":
    main()
