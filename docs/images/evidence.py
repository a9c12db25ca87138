"""The README's figure, from the rows of record 025: ``python docs/images/evidence.py``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

from analysis import evidence_forest, plots

HERE = Path(__file__).parent
ROWS = HERE.parent / "results" / "025-outside-evidence" / "evidence.csv"


def main() -> None:
    """Gains in compute, the paper's and ours, by how the rates were chosen; the other rows are in
    the record.
    """
    rows = pd.read_csv(ROWS, dtype=str, keep_default_na=False)
    ours = rows["source"].str.startswith("ours") & (rows["axis"] == "FLOP")
    paper = (rows["source"] == "paper, Table 2") & rows["variant"].isin(["full", "block"])
    rows.loc[ours, "size"] = rows["tuning"]
    with tempfile.TemporaryDirectory() as scratch:
        rows[ours | paper].to_csv(chosen := Path(scratch) / "rows.csv", index=False)
        _, figure = evidence_forest(chosen)
    plots.save(figure, HERE / "evidence.png")


if __name__ == "__main__":
    main()
