"""Shared by the tests of reports."""

import pandas as pd

from analysis import paper


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def published(tmp_path, **change) -> pd.DataFrame:
    table = paper.table_2().assign(**change)
    table.to_csv(tmp_path / "runs.csv", index=False)
    return table
