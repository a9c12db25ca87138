"""What a sweep came to, as metrics of its parent run, so that sweeps sort by result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnres_lab.runs.folder import RunFolder, read_json
from attnres_lab.tracking.names import encode, finite, metrics


def best(trials: Sequence[RunFolder]) -> list[Any]:
    """The lowest ``val/loss`` (nats per token) of a finished trial; nothing where there is none."""
    losses = []
    for files in trials:
        status, result = files.status(), read_json(files.result) or {}
        loss = result.get("val/loss", float("nan"))
        if status.state == "finished" and finite(loss):
            losses.append((float(loss), status.updated))
    if not losses:
        return []
    loss, when = min(losses)
    return metrics({"val/loss": loss}, when, 0)


def gains(file: Path) -> list[Any]:
    """A report's gains per FLOP with their 95 % limits, and the largest of them."""
    found = read_json(file) or {}
    values = {"gain/best": max(row["gain"] for row in found.values())} if found else {}
    for variant, row in found.items():
        name = f"gain/{encode(variant)}"
        values |= {name: row["gain"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    values = {key: value for key, value in values.items() if finite(value)}
    return metrics(values, file.stat().st_mtime, 0) if values else []
