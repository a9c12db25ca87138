"""Names and values that MLflow takes (docs/tracking.md); ``analysis.store`` has the way back.

MLflow refuses names with other characters than letters, digits, ``/ _ . -`` and space, names that
are no normal path, and values over 6000 characters.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from attnres_lab.runs.table import as_text

VALUE_LIMIT = 6000
# an "_x" of its own is escaped too, so that every "_x" starts an escape
_REFUSED = re.compile(r"[^/\w.\- ]|_(?=x)")


def encode(name: str) -> str:
    """``name`` as MLflow takes it: a refused character becomes ``_x<hex>_``; a name that needs
    nothing stays as it is.
    """
    safe = _REFUSED.sub(_escape, name)
    if posixpath.normpath(safe) != safe or safe.startswith(("/", ".")):
        safe = re.sub(r"[./]", _escape, safe)
    return safe


def model_name(name: str) -> str:
    """``name`` as MLflow takes it for a logged model: no dot either (``full-t0.5``)."""
    return re.sub(r"[/:.%\"']", "_", name)


def to_params(values: Mapping[str, Any]) -> dict[str, str]:
    """MLflow parameters of dotted keys; the rest of a long value goes on under ``key/2``,
    ``key/3``, ...
    """
    params = {}
    for key, value in values.items():
        text, name = as_text(value), encode(key)
        for index in range(0, max(len(text), 1), VALUE_LIMIT):
            params[f"{name}/{index // VALUE_LIMIT + 1}" if index else name] = text[
                index : index + VALUE_LIMIT
            ]
    return params


def factors(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the config values, as metrics ``factor/<dotted key>``: MLflow compares
    parameters as text only. Which values are factors the plan decides: those it varies.
    """
    numbers = {
        key: value
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {
        f"factor/{encode(key)}": float(value)
        for key, value in numbers.items()
        if math.isfinite(value)
    }


def _escape(match: re.Match[str]) -> str:
    return f"_x{ord(match[0]):x}_"


def finite(value: Any) -> bool:
    """Whether MLflow can store it as a number."""
    return isinstance(value, int | float) and math.isfinite(value)


def metrics(values: Mapping[str, float], when: float, step: int) -> list[Any]:
    """``values`` as MLflow's points at a time in seconds."""
    from mlflow.entities import Metric

    return [Metric(key, float(value), int(when * 1000), step) for key, value in values.items()]
