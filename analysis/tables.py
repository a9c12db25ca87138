"""Tables of text as Markdown and LaTeX."""

from __future__ import annotations

import pandas as pd

_TEX = {
    "–": "--",
    "±": r"$\pm$",
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
}


def markdown(frame: pd.DataFrame) -> str:
    """A pipe table of text and numbers, without the index."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return "" if pd.isna(value) else f"{value:.4g}"
        return " ".join(str(value).split()).replace("|", "\\|")

    rows = [
        [cell(value) for value in row]
        for row in (tuple(frame), ["---"] * frame.shape[1], *frame.itertuples(index=False))
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def tex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(_TEX.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)
