"""How long a run trains: a value and its unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

#: tokens_per_param: per non-embedding parameter of the trunk; flops: exact training FLOPs; seconds:
#: wall clock of training.
UNITS = ("tokens", "tokens_per_param", "flops", "steps", "seconds")


@dataclass(frozen=True)
class Budget:
    """``Budget(150, "steps")``; in YAML ``budget: 150 steps``."""

    value: float
    unit: str

    def __post_init__(self) -> None:
        """Raises ValueError for what is no budget."""
        if self.unit not in UNITS:
            raise ValueError(f"budget: unknown unit '{self.unit}'; one of {', '.join(UNITS)}")
        if not 0 < self.value < math.inf:
            raise ValueError(f"budget: {self.value:g} is not positive and finite")
        if self.unit == "steps" and self.value % 1:
            raise ValueError(f"budget: {self.value:g} is no whole number of steps")

    @classmethod
    def parse(cls, text: Any) -> Budget:
        """``"150 steps"``, ``"1e18 flops"``. Raises ValueError with the remedy."""
        for unit in UNITS if isinstance(text, dict) else ():
            if unit in text:
                raise ValueError(f"budget: write a value and its unit: budget: {text[unit]} {unit}")
        value, _, unit = text.strip().partition(" ") if isinstance(text, str) else ("", "", "")
        try:
            return cls(float(value), unit.strip())
        except ValueError as error:
            if str(error).startswith("budget"):
                raise
            raise ValueError(
                f"budget: a value and its unit are expected, for example 150 steps, got {text!r}; "
                f"units: {', '.join(UNITS)}"
            ) from None

    def __str__(self) -> str:
        short = f"{self.value:g}"
        exact = short if float(short) == self.value else repr(self.value).removesuffix(".0")
        return f"{exact} {self.unit}"
