"""Names and values that MLflow takes, and the way back (docs/tracking.md).

MLflow refuses names with other characters than letters, digits, ``/ _ . -`` and space, names that
are no normal path, and values over 6000 characters.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Mapping
from typing import Any

VALUE_LIMIT = 6000
# an "_x" of its own is escaped too, so that every "_x" starts an escape
_REFUSED = re.compile(r"[^/\w.\- ]|_(?=x)")
_FACTORS = ("data.seq_len", "train.batch_size")
_ESCAPE = re.compile(r"_x([0-9a-f]+)_")


def encode(name: str) -> str:
    """``name`` as MLflow takes it: a refused character becomes ``_x<hex>_``; a name that needs
    nothing stays as it is.
    """
    safe = _REFUSED.sub(_escape, name)
    if posixpath.normpath(safe) != safe or safe.startswith(("/", ".")):
        safe = re.sub(r"[./]", _escape, safe)
    return safe


def decode(name: str) -> str:
    """The inverse of ``encode``."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)


def to_params(values: Mapping[str, Any]) -> dict[str, str]:
    """MLflow parameters of dotted keys: text as it is, anything else as JSON (1e5 as 100000, as a
    plan may have it); the rest of a long value goes on under ``key/2``, ``key/3``, ..."""
    params = {}
    for key, value in values.items():
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
        text = (
            value
            if isinstance(value, str)
            else json.dumps(int(value) if whole else value, ensure_ascii=False)
        )
        name = encode(key)
        for index in range(0, max(len(text), 1), VALUE_LIMIT):
            params[f"{name}/{index // VALUE_LIMIT + 1}" if index else name] = text[
                index : index + VALUE_LIMIT
            ]
    return params


def from_params(params: Mapping[str, str]) -> dict[str, str]:
    """Dotted keys and whole texts again."""
    values = {}
    for name, text in params.items():
        head, _, tail = name.rpartition("/")
        if tail.isdigit() and head in params:
            continue
        index = 2
        while (more := params.get(f"{name}/{index}")) is not None:
            text, index = text + more, index + 1
        values[decode(name)] = text
    return values


def factors(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the config values, as metrics ``factor/<dotted key>``: MLflow compares
    parameters as text only.

    Of the sections ``data`` and ``train`` only the sequence length and the batch size: the rest is
    no factor of an experiment.
    """
    numbers = {
        key: value
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    numbers = {
        key: value
        for key, value in numbers.items()
        if not key.startswith(("data.", "train.")) or key in _FACTORS
    }
    return {
        f"factor/{encode(key)}": float(value)
        for key, value in numbers.items()
        if math.isfinite(value)
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _escape(match: re.Match[str]) -> str:
    return f"_x{ord(match[0]):x}_"
