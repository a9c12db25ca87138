"""Scores question by question: paired differences, their errors, and their place in a report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_helpers import section
from scipy import stats

from analysis.evaluations import Answers, answers, over_questions_and_seeds, paired, scores
from analysis.report import write_report


def test_the_paired_difference_of_one_seed_is_that_of_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.random(50), rng.random(50)
    found = paired([Answers("x", a)], [Answers("x", b)])
    expected = stats.ttest_rel(a, b)
    assert found is not None
    assert found.value == pytest.approx(np.mean(a - b))
    assert found.value / found.stderr == pytest.approx(expected.statistic)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_shared_questions_make_differences_sharper_than_scores():
    rng = np.random.default_rng(1)
    hard = rng.random(300)
    one, two = (Answers("x", (rng.random(300) * 0.2 + hard > 0.5) * 1.0) for _ in range(2))
    single, difference = scores([one]), paired([one], [two])
    assert single is not None
    assert difference is not None
    assert difference.stderr < single.stderr


@pytest.mark.parametrize(("question", "seed"), [(1.0, 0.0), (0.0, 0.5), (0.7, 0.3)])
def test_intervals_over_questions_and_seeds_cover(question, seed):
    """5 seeds, 40 questions, 600 draws: 93 to 99.9 % of the intervals hold the truth; the variance
    is right within a tenth where both vary.
    """
    rng, S, Q = np.random.default_rng(2), 5, 40
    found = [
        over_questions_and_seeds(
            question * rng.normal(size=Q) + seed * rng.normal(size=(S, 1)) + rng.normal(size=(S, Q))
        )
        for _ in range(600)
    ]
    assert 0.93 <= np.mean([m.low <= 0 <= m.high for m in found]) <= 0.999
    truth = question**2 / Q + seed**2 / S + 1 / (S * Q)
    assert np.mean([m.stderr**2 for m in found]) == pytest.approx(truth, rel=0.2)


def test_answers_to_other_questions_are_not_paired():
    one, two = Answers("x", np.ones(3)), Answers("y", np.zeros(3))
    assert paired([one], [two]) is None
    assert scores([one, two]) is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 10), (3, 10)])
def test_scores_without_any_difference_have_no_interval(shape):
    """Ten equal answers do not say that the eleventh is equal too."""
    mean = over_questions_and_seeds(np.ones(shape))
    assert mean.value == 1
    assert np.isnan([mean.stderr, mean.low, mean.high]).all()


def run(folder: Path, variant: str, seed: int, right: list[float]) -> dict:
    key = "eval/nano_copy/acc"
    place = folder / f"{variant}-{seed}"
    if right:
        path = place / "artifacts" / "eval" / "nano.json"
        path.parent.mkdir(parents=True)
        record = {key: {"questions": "x", "scores": right}}
        path.write_text(json.dumps({"values": {}, "answers": record}))
    row = {"run_id": str(place), "variant": variant, "size": "d8-L2", "seed": seed, "val/loss": 2.0}
    return row | ({key: float(np.mean(right))} if right else {})


def test_a_report_shows_scores_and_paired_differences_where_runs_have_them(tmp_path, monkeypatch):
    arms = {"baseline": [[1, 0, 0, 0], [1, 0, 1, 0]], "full": [[1, 1, 0, 0], [1, 1, 1, 0]]}
    rows = [
        run(tmp_path, variant, seed, right)
        for variant, several in arms.items()
        for seed, right in enumerate(several)
    ]
    rows += [run(tmp_path, "block8", 0, [])]
    assert list(answers(rows[0]["run_id"])) == ["eval/nano_copy/acc"]
    frame = pd.DataFrame(rows).assign(status="finished")
    monkeypatch.setattr("analysis.report.COMPARISONS", ())  # which want curves

    def report(runs: pd.DataFrame) -> str:
        runs.to_csv(tmp_path / "demo.csv", index=False)
        return write_report(tmp_path / "demo.csv", tmp_path / "out").markdown.read_text()

    text = report(frame)
    table = section(text, "Benchmarks")
    assert "| d8-L2 | nano_copy/acc | 0.3750 ± " in table
    difference = paired(
        *([Answers("x", np.array(right, float)) for right in arms[v]] for v in ("full", "baseline"))
    )
    assert difference is not None
    assert f"{difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})" in table
    assert "not measured" in table

    without = report(frame.drop(columns="eval/nano_copy/acc"))
    assert "Benchmarks" not in without
    kept = text.replace(f"## Benchmarks\n\n{table.strip()}\n\n", "")
    assert kept == without
