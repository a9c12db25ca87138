"""What a run scored: final numbers in ``result.json``, each question in an artifact."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnres_lab.runs.folder import RunFolder, read_json, write_json


@dataclass(frozen=True)
class Answers:
    """A metric of a task, ``eval/<task>/<metric>``, with its standard error (nan where there is
    none) and the score of each question. ``questions`` is a fingerprint of what was asked, in its
    order.
    """

    key: str
    value: float
    stderr: float
    questions: str
    scores: tuple[float, ...]

    @classmethod
    def mean(cls, key: str, asked: Iterable[str], scores: Sequence[float]) -> Answers:
        """The mean over the questions, its error from their spread."""
        n = len(scores)
        error = float(np.std(scores, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        return cls(key, float(np.mean(scores)), error, fingerprint(asked), tuple(scores))


def fingerprint(asked: Iterable[str]) -> str:
    """Of the texts of questions, in their order."""
    return hashlib.sha256("\1".join(asked).encode()).hexdigest()[:16]


def artifact(files: RunFolder, name: str) -> Path:
    """Where the scores of the task ``name`` lie, as it was asked for."""
    return files.scores / f"{name}.json"


def missing(files: RunFolder, name: str, settings: Mapping[str, Any]) -> bool:
    """Whether the run has no scores of the task ``name`` under these settings."""
    found, result = read_json(artifact(files, name)), read_json(files.result) or {}
    return (
        found is None
        or found.get("settings") != dict(settings)
        or not set(found.get("values", {})) <= set(result)
    )


def write(
    files: RunFolder, name: str, settings: Mapping[str, Any], answers: Sequence[Answers]
) -> dict[str, float]:
    """Write the artifact, then the final numbers, which say that it is there, and touch the status,
    by which a mirror sees that the run has something new. The caller holds the folder. Returns the
    numbers.
    """
    files.still_there()
    values: dict[str, float] = {}
    for a in answers:
        values[a.key] = a.value
        if math.isfinite(a.stderr):
            values[f"{a.key}_stderr"] = a.stderr
    record = {"task": name, "settings": dict(settings), "values": values}
    record["answers"] = {a.key: asdict(a) | {"scores": list(a.scores)} for a in answers}
    write_json(files.new_artifact(files.scores.name, f"{name}.json"), record)
    write_json(files.result, (read_json(files.result) or {}) | values)
    files.status_file.touch()
    return values
