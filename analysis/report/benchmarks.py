"""Scores on benchmarks in a report, where the runs have them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import evaluations
from analysis.evaluations import ERROR, PREFIX, Answers, Mean
from analysis.report.evidence import BASELINE, Evidence
from analysis.report.page import Page
from analysis.tables import markdown


def _benchmarks(evidence: Evidence, page: Page) -> None:
    """Mean score by size, task and variant, and the differences to the baseline."""
    runs = evidence.chosen
    columns = [str(c) for c in runs if str(c).startswith(PREFIX) and not str(c).endswith(ERROR)]
    keys = [key for key in columns if runs[key].notna().any()]
    if not keys:
        return
    known: dict[str, dict[str, Answers]] = {}
    if "run_id" in runs and not evidence.tracking_uri:
        known = {run: evaluations.answers(run) for run in runs["run_id"]}
    variants = [BASELINE] * (BASELINE in set(runs["variant"])) + evidence.variants
    rows = []
    for size, part in runs.groupby("size", sort=False):
        for key in keys:
            row: dict[str, object] = {"size": size, "task": key.removeprefix(PREFIX)}
            cells = {v: _cell(part[part["variant"] == v], key, known) for v in variants}
            row |= {v: _text(mean) if mean else "not measured" for v, mean in cells.items()}
            for v in variants:
                if v != BASELINE and BASELINE in variants:
                    difference = _difference(part, v, key, known)
                    row[f"{v} - {BASELINE}"] = _signed(difference) if difference else "not measured"
            rows.append(row)
    note = (
        "Mean score ± standard error. Differences are paired, question by question and seed by "
        "seed, with their 95 % intervals: of one seed over the questions, of several over both; "
        "they are not corrected for the number of tasks."
    )
    page.add("## Benchmarks", note, markdown(pd.DataFrame(rows)))


def _cell(part: pd.DataFrame, key: str, known: dict[str, dict[str, Answers]]) -> Mean | None:
    """Of the runs of a variant; without their answers the error is a single run's own."""
    part = part[part[key].notna()]
    if part.empty:
        return None
    given = [known.get(str(run), {}).get(key) for run in part.get("run_id", [])]
    answered = [a for a in given if a is not None]
    if answered and len(answered) == len(part) and (found := evaluations.scores(answered)):
        return found
    single = len(part) == 1 and f"{key}{ERROR}" in part
    error = float(part[f"{key}{ERROR}"].iloc[0]) if single else np.nan
    return Mean(float(part[key].mean()), error, np.nan, np.nan, len(part), 0)


def _difference(
    part: pd.DataFrame, variant: str, key: str, known: dict[str, dict[str, Answers]]
) -> Mean | None:
    """Of the seeds that both have answered."""
    by_seed = {
        name: {
            run["seed"]: known[run["run_id"]][key]
            for run in part[part["variant"] == name].to_dict("records")
            if key in known.get(run.get("run_id", ""), {})
        }
        for name in (variant, BASELINE)
    }
    seeds = sorted(by_seed[variant].keys() & by_seed[BASELINE].keys())
    if not seeds:
        return None
    ours, others = ([by_seed[name][seed] for seed in seeds] for name in (variant, BASELINE))
    return evaluations.paired(ours, others)


def _text(mean: Mean) -> str:
    return f"{mean.value:.4f}" + ("" if np.isnan(mean.stderr) else f" ± {mean.stderr:.4f}")


def _signed(mean: Mean) -> str:
    limits = "" if np.isnan(mean.low) else f" ({mean.low:+.4f} to {mean.high:+.4f})"
    return f"{mean.value:+.4f}{limits}"


BENCHMARKS = (_benchmarks,)
