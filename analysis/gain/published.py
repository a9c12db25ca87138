"""Gains from printed coefficients, with what their rounding alone leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from itertools import product
from math import exp, isfinite, log
from typing import NamedTuple

from analysis.gain.alternatives import Definition, Interval


class PublishedGain(NamedTuple):
    """`gain` and the `rounding` interval: all gains that coefficients which print alike allow. It
    holds no statistical error.
    """

    gain: float
    rounding: Interval


def gain_from_published(
    baseline: Sequence[str], variant: Sequence[str], C: float, definition: Definition = "extra"
) -> PublishedGain:
    """Gain of `variant` over `baseline` at compute C from their printed laws L = A C^-alpha, each
    as the strings (A, alpha), for example ("1.870", "0.058").

    Strings, since a trailing zero tells the precision: every coefficient may lie half a unit of its
    last digit away, and the extremes over that box are at its corners (the log gain is monotone in
    each coefficient). C in the unit of the printed laws; `definition` as in `Gain.at`. Raises
    ValueError for coefficients that are not positive printed numbers, and for C that is not finite
    and above 0.
    """
    if definition not in ("extra", "saving"):
        raise ValueError(f"definition must be 'extra' or 'saving', not {definition!r}")
    if not (isfinite(C) and C > 0):
        raise ValueError(f"C must be finite and above 0, found {C!r}")
    for arm, law in (("baseline", baseline), ("variant", variant)):
        if isinstance(law, str) or len(law) != 2:
            raise ValueError(
                f"{arm} is {law!r}: give the two strings A and alpha of L = A C^-alpha"
            )
    printed = [
        _printed(text, f"{arm} {name}")
        for arm, law in (("baseline", baseline), ("variant", variant))
        for text, name in zip(law, ("A", "alpha"), strict=True)
    ]
    corners = [
        _gain(corner, C, definition)
        for corner in product(*((value - half, value + half) for value, half in printed))
    ]
    return PublishedGain(
        _gain([value for value, _ in printed], C, definition), (min(corners), max(corners))
    )


def _gain(coefficients: Sequence[float], C: float, definition: Definition) -> float:
    a, alpha, b, beta = coefficients
    return exp((log(a / b) + (beta - alpha) * log(C)) / (alpha if definition == "extra" else beta))


def _printed(text: str, what: str) -> tuple[float, float]:
    """Value and half a unit of the last printed digit."""
    if not isinstance(text, str):
        raise ValueError(
            f"{what} is {text!r}: give it as it is printed, as a string, for the rounding is read "
            "from its digits"
        )
    try:
        number = Decimal(text)
        half = Decimal((0, (5,), int(number.as_tuple().exponent) - 1))
    except (InvalidOperation, ValueError) as error:
        raise ValueError(f"{what} is {text!r}, which is no printed number") from error
    if number <= half:
        raise ValueError(f"{what} is {text!r}: it must be above 0, and above its own rounding")
    return float(number), float(half)
