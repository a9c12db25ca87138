"""What a table of runs must hold before anything is said of it; every refusal names its rows or
columns.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

# the words of run folders and of MLflow, in any case
UNFINISHED = (
    "scheduled",
    "running",
    "failed",
    "stopped",
    "pruned",
    "damaged",  # its status could not be read
    "killed",  # from here on also Weights & Biases' words
    "crashed",
    "preempting",
    "preempted",
    "pending",
)
DONE = ("", "finished")
FINISHED = (*DONE, "diverged")
NUMBERS = ("integer", "floating", "mixed-integer-float")  # of objects, as pandas calls them


def filled(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raise ValueError, naming the rows, where one of ``columns`` is empty."""
    for column in columns:
        if frame[column].isna().any():
            raise ValueError(f"{rows_of(frame[frame[column].isna()])}: {column} is empty")


def numeric(frame: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """With ``columns`` as floats: whole numbers that are too long for 64 bits, such as FLOP, come
    as objects. Raises ValueError for what is no number.
    """
    for column in columns:
        kind = pd.api.types.infer_dtype(frame[column], skipna=True)
        if not pd.api.types.is_numeric_dtype(frame[column]) and kind not in NUMBERS:
            raise ValueError(
                f"column {column!r} is not numeric ({frame[column].iloc[0]!r} ...): convert it to "
                "numbers"
            )
    return frame.assign(**{column: frame[column].astype(float) for column in columns})


def states(frame: pd.DataFrame) -> pd.Series[str]:
    """``status`` in small letters, empty where it is or the column is missing. Raises ValueError
    for a word that is not known.
    """
    if "status" not in frame:
        return pd.Series("", frame.index)
    status = frame["status"].fillna("").astype(str).str.lower()
    unknown = frame[~status.isin((*UNFINISHED, *FINISHED))]
    if len(unknown):
        raise ValueError(
            f"{rows_of(unknown)}: unknown status {some(unknown['status'].unique())}; valid: "
            f"{', '.join(FINISHED[1:] + UNFINISHED)}"
        )
    return status


def rows_of(frame: pd.DataFrame) -> str:
    """The rows of ``frame`` by their index, for a message."""
    return f"row{'s' if len(frame) > 1 else ''} {some(frame.index)}"


def some(items: Iterable[object], most: int = 8) -> str:
    """The first of ``items`` and how many more there are, for a message."""
    names = [str(item) for item in items]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
