"""When a sweep starts no more trials: its stop rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attnres_lab.sweep.spec import SweepSpec


def number(value: Any) -> float | None:
    """A number of a result, "nan" and "inf" among them; None for whatever else a function left."""
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        return None
    return float(value) if isinstance(value, int | float | str) else None


class Rules:
    """Counts what finished; ``reached`` names the first rule that is reached."""

    def __init__(self, spec: SweepSpec) -> None:
        self.stop = spec.stop
        self.sign = 1.0 if spec.objectives[0].direction == "minimize" else -1.0
        self.trials, self.hours, self.flops = 0, 0.0, 0.0
        self.best, self.idle = float("inf"), 0
        self.reached = ""

    def add(self, result: Mapping[str, Any]) -> bool:
        """Count a finished trial; True if a rule is reached by it."""
        self.trials += 1
        self.hours += (number(result.get("device_seconds")) or 0.0) / 3600
        self.flops += number(result.get("flops")) or 0.0
        return self._check()

    def point(self, value: float | None) -> None:
        """Count a newly finished point by its first objective, where it has one."""
        if value is None:
            return
        better = self.sign * value < self.best
        self.best, self.idle = (self.sign * value, 0) if better else (self.best, self.idle + 1)
        self._check()

    def _check(self) -> bool:
        before = self.reached
        counted = {
            "trials": self.trials,
            "device_hours": self.hours,
            "flops": self.flops,
            "no_improvement": self.idle,
        }
        for name, value in counted.items():
            limit = getattr(self.stop, name)
            if not self.reached and limit and value >= limit:
                self.reached = name
        return self.reached != before
