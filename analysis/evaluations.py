"""Scores on benchmarks, question by question: means and paired differences with their errors.

Shapes: S runs or pairs of runs (a seed each), Q questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from attnres_lab.runs import RunFolder
from attnres_lab.runs.folder import read_json

PREFIX, ERROR = "eval/", "_stderr"


@dataclass(frozen=True)
class Mean:
    """``value`` with its standard error and its interval at 95 %, over ``pairs`` runs or pairs and
    ``questions``; error and limits are nan for a single question, and where all scores are equal.
    """

    value: float
    stderr: float
    low: float
    high: float
    pairs: int
    questions: int


def over_questions_and_seeds(x_SQ: np.ndarray[Any, Any]) -> Mean:
    """The mean of scores, or of differences of scores, where every seed answered every question.

    Of one seed it is the t interval over the questions (of differences the paired t-test's): what
    other questions would give for these very models. Of several seeds both vary: with x = mean +
    question + seed + rest, two crossed random factors, the variance of the mean is estimated
    without bias by var(q) / Q + var(s) / S - var(r) / (S Q), where q and s are the means of
    questions and of seeds and r is what is left; degrees of freedom after Satterthwaite. It is
    never taken below either of its first two parts.
    """
    S, Q = x_SQ.shape
    value = float(x_SQ.mean())
    if Q < 2:
        return Mean(value, np.nan, np.nan, np.nan, S, Q)
    q_Q, s_S = x_SQ.mean(0), x_SQ.mean(1)
    parts = [(float(q_Q.var(ddof=1)) / Q, Q - 1)]
    variance = parts[0][0]
    if S > 1:
        rest = float(((x_SQ - q_Q - s_S[:, None] + value) ** 2).sum()) / ((S - 1) * (Q - 1))
        parts += [(float(s_S.var(ddof=1)) / S, S - 1)]
        variance = max(sum(v for v, _ in parts) - rest / (S * Q), *(v for v, _ in parts))
    if not variance:  # an interval of no width would say that this is known exactly
        return Mean(value, np.nan, np.nan, np.nan, S, Q)
    freedom = sum(v for v, _ in parts) ** 2 / sum(v**2 / d for v, d in parts)
    reach = float(stats.t.ppf(0.975, freedom)) * variance**0.5
    return Mean(value, variance**0.5, value - reach, value + reach, S, Q)


@dataclass(frozen=True)
class Answers:
    """The score of each question, [Q], and the fingerprint of what was asked."""

    questions: str
    scores_Q: np.ndarray[Any, Any]


def answers(folder: Path | str) -> dict[str, Answers]:
    """By metric, ``eval/<task>/<metric>``, the answers that lie in a run's folder; empty where
    there are none.
    """
    found = {}
    for path in sorted(RunFolder(folder).scores.glob("*.json")):
        for key, a in ((read_json(path) or {}).get("answers") or {}).items():
            if a["scores"]:
                found[key] = Answers(a["questions"], np.asarray(a["scores"], float))
    return found


def scores(runs: Sequence[Answers]) -> Mean | None:
    """The mean over the runs; None where they were not asked the same questions."""
    if len({a.questions for a in runs}) != 1:
        return None
    return over_questions_and_seeds(np.stack([a.scores_Q for a in runs]))


def paired(ours: Sequence[Answers], others: Sequence[Answers]) -> Mean | None:
    """The mean difference of scores, ours less the others', question by question and pair by pair
    (a seed each); None where they were not asked the same questions.
    """
    if len({a.questions for a in (*ours, *others)}) != 1:
        return None
    pairs = zip(ours, others, strict=True)
    return over_questions_and_seeds(np.stack([a.scores_Q - b.scores_Q for a, b in pairs]))
