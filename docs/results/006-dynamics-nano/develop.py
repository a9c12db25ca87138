"""Table and figure of this record from the runs of ``sweeps/dynamics.yaml --scale nano``: ``python
develop.py <runs folder>``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

from analysis import plots
from analysis.depth import DepthRecord, load_depth
from analysis.plots.style import looks

HERE = Path(__file__).parent
END = 4  # sublayers at either end


def row(record: DepthRecord) -> dict[str, float]:
    """One probe in six numbers; shares are relative to a uniform read, over the reads with three
    sources or more.
    """
    p, mass = record.profile, record.mass
    found = {
        "output, last / first": p["output_rms"].iloc[-END:].mean()
        / p["output_rms"].iloc[:END].mean(),
        "input, last / first": p["input_rms"].iloc[-END:].mean() / p["input_rms"].iloc[:END].mean(),
        "gradient, first / last": p["gradient_norm"].iloc[:END].mean()
        / p["gradient_norm"].iloc[-END:].mean(),
    }
    if len(mass):
        mass = mass[mass["sources"] >= 3]
        found |= {
            "newest": (mass["latest"] * mass["sources"]).mean(),
            "embedding": (mass["embedding"] * mass["sources"]).mean(),
        }
        found |= {
            "reads with newest above uniform": (mass["latest"] * mass["sources"] > 1).mean(),
            "evenness": mass["evenness"].mean(),
        }
    return found


def main(runs: Path) -> None:
    """Read, print, draw."""
    rows, profiles = [], []
    for trial in sorted((runs / "sweeps" / "dynamics-nano" / "trials").iterdir()):
        labels = {
            key: json.loads((trial / "environment.json").read_text())[key]
            for key in ("variant", "seed")
        }
        for record in load_depth(trial):
            rows.append({**labels, "step": record.step, **row(record)})
            profiles.append(record.profile.assign(**labels, step=record.step).reset_index())
    table = pd.DataFrame(rows)
    numbers = [name for name in table if name not in ("variant", "seed", "step")]
    grouped = table.groupby(["variant", "step"])[numbers].agg(["mean", "std"])
    for variant, part in grouped.groupby("variant"):
        for (_, step), values in part.iterrows():
            cells = [
                f"{values[n]['mean']:.2f} ± {values[n]['std']:.2f}"
                if pd.notna(values[n]["mean"])
                else "–"
                for n in numbers
            ]
            print("|", " | ".join([str(variant), str(step), *cells]), "|")
    print(numbers)
    every = pd.concat(profiles)
    last = (
        every[every["step"] == every["step"].max()]
        .groupby(["variant", "sublayer"])
        .mean(numeric_only=True)
    )
    figure, (left, middle, right) = plots.new_axes(13, 3.4, columns=3)
    plots.by_depth(
        left,
        {str(v): last.loc[v]["input_rms"] for v in last.index.levels[0]},
        "RMS of the hidden state that enters",
    )
    plots.by_depth(
        middle,
        {str(v): last.loc[v]["gradient_norm"] for v in last.index.levels[0]},
        "gradient norm at the output",
    )
    for variant, part in table.dropna().groupby("variant"):
        means = part.groupby("step")[["newest", "embedding"]].mean()
        for name, style in (("newest", "-"), ("embedding", "--")):
            right.plot(
                means.index,
                means[name],
                style,
                color=looks([str(v) for v in last.index.levels[0]])[str(variant)].color,
                label=f"{variant}, {name}",
            )
    right.axhline(1, color="black", linewidth=0.6)
    right.set(xlabel="step", ylabel="weight / uniform weight")
    right.legend(fontsize=7)
    plots.save(figure, HERE / "dynamics.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
