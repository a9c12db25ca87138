"""Sweeps under ``tune``: what their report says, and which sections are refused."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pandas as pd
import pytest

from analysis import compute_equivalent_gain, load_runs
from attnres_lab.errors import UserError
from attnres_lab.sweep.known import export
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.spec import load_spec
from attnres_lab.sweep.tuning import Tuning
from tests.sweep.conftest import Lab
from tests.sweep.test_tuning import FUNCTION, SPACE, report_of, tuned

WIDTHS = (16, 24, 32)


def at_one_rate(lab: Lab, rate: float) -> pd.DataFrame:
    """A run of each size and arm at that rate, on the tuning seed of its size, by the law that the
    sweep's runs were made with: 1.25 times the compute for Full, 0.1 nats for an octave off the
    best rate.
    """
    seeds = {e.size: e.seed for e in lab.folder.plan() if e.tuning}
    rows = []
    for dim in WIDTHS:
        for variant, gain, best in (("baseline", 1.0, 0.16), ("full", 1.25, 0.08)):
            seed, octaves = seeds[f"d{dim}-L4"], math.log2(rate / (best / math.sqrt(dim)))
            loss = 15 * (1e8 * dim**2 * gain) ** -0.08 + 0.1 * octaves**2 + 1e-4 * (seed % 7)
            rows.append((variant, dim, seed, 1e8 * dim**2, loss))
    return pd.DataFrame(rows, columns=["variant", "size", "seed", "flops", "val/loss"])


def expected_debt(lab: Lab) -> tuple[float, float]:
    """Sd of a run over the two measuring seeds of a cell, and the median over cells of what the
    error of the vertex costs: for a bowl of a nats per octave squared, through three rates an
    octave apart and its best u octaves from the middle one, sd**2 (1 + 12 u**2) / (8 a).
    """
    noise: dict[tuple[str, str], list[float]] = {}
    for entry in lab.folder.plan():
        if not entry.tuning:
            noise.setdefault((entry.size, entry.variant), []).append(1e-4 * (entry.seed % 7))
    variance = statistics.fmean(statistics.variance(pair) for pair in noise.values())
    costs = []
    for dim in WIDTHS:
        for best in (0.16, 0.08):
            octaves = math.log2(best / math.sqrt(dim) / 0.01)
            costs.append(variance * (1 + 12 * (octaves - round(octaves)) ** 2) / (8 * 0.1))
    return math.sqrt(variance), statistics.median(costs)


def test_the_report_shows_bowls_values_cost_and_what_a_shared_value_would_have_said(
    lab: Lab,
) -> None:
    lab.run(tuned(lab))
    text = report_of(lab)
    assert "full is better" in text
    section = text.partition("## Tuned optim.lr")[2].partition("\n## ")[0]
    assert "*Loss of the tuning runs by optim.lr" in section
    assert "| d16-L4 | 0.04 ± 0 % | 0.02 ± 0 % |" in section
    assert "For comparison only: what the same sweep would have said at one value" in section
    for rate in (0.005, 0.01, 0.02):
        gain = compute_equivalent_gain(at_one_rate(lab, rate), "full")
        low, high = gain.interval
        said = f"{gain.gain:.2f} ({low:.2f} to {high:.2f})"
        assert f"| {rate:g}, shared | {said} |" in section
    assert "| 0.04, shared |" not in section, "not every cell has tried it"
    sigma, debt = expected_debt(lab)
    assert f"costs a cell: {debt:.2g} nats (median)" in section
    assert f"from a run's standard deviation of {sigma:.2g} nats over the measuring" in section
    assert "| full | flops | 1.25" in text.partition("## Compute-equivalent gain")[2]
    tuning = load_runs("s", tuning=True)
    assert f"| tuning | {len(tuning)} |" in section
    assert "| measuring | 12 |" in section
    assert len(load_runs("s")) == 12, "tuning runs are no replicates"
    assert load_runs("s")["optim.lr"].nunique() == 6
    export(lab.folder, lab.path)
    assert len(load_runs(lab.path / "trials.csv")) == 12
    assert len(load_runs(lab.path / "trials.csv", tuning=True)) == len(tuning)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tune": {"start": -1}}, "tune.start: should be greater than 0, got -1"),
        ({"tune": {"factor": 1}}, "tune.factor: should be greater than 1, got 1"),
        ({"tune": {"from": "three"}}, "tune.from: 'three' is not written as: 3 smallest sizes"),
        ({"tune": {"starts": 1}}, "tune.starts: unknown key, did you mean 'start'"),
        ({"tune": {"key": "optim.rl"}}, "tune.key: optim.rl: unknown key"),
        ({"tune": {"key": ["optim.lr", "optim.weight_decay"]}}, "tune.key: "),
        ({"tune": {"per": ["sise"]}}, "no label or axis is called 'sise', did you mean 'size'"),
        ({"tune": {"values": {}}}, "tune: give start, the value to begin with, or values"),
        ({"tune": {"from": "2 smallest sizes", "per": ["variant"]}}, "with from, size must be"),
        ({"space": {**SPACE, "optim.lr": [1e-3]}}, "tune.key: optim.lr is set by space.optim.lr"),
        ({"overrides": {"optim.lr": 1e-3}}, "tune.key: optim.lr is set by overrides too"),
        ({"space": {"size": {"a": {"optim.lr": 1.0}}}}, "tune.key: optim.lr is set by space.size"),
        ({"sampler": {"name": "tpe"}, "trials": 3}, "the sampler must be grid"),
        (
            {"space": {**SPACE, "seed": {"each": 98}}, "tune": {"seeds": 3}},
            "space.seed: each is 98 and tune.seeds 3, but a size has 100 seeds in all; set each to "
            "97 at most",
        ),
    ],
)
def test_a_wrong_section_is_refused_in_one_line(
    lab: Lab, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError) as refused:
        Tuning(Plan(load_spec(tuned(lab, **changes)))).trials(lambda _: None)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"{lab.path}/sweep.yaml:")


def test_the_last_tuning_seeds_are_those_of_before_when_the_measuring_seeds_grow(lab: Lab) -> None:
    """Up to the hundred of a size, of which neither kind takes one of the other's."""
    few, most = (
        Plan(load_spec(tuned(lab, space={**SPACE, "seed": {"each": each}}, tune={"seeds": 3})))
        for each in (1, 97)
    )
    tuning = [t.entry for t in Tuning(few).trials(lambda _: None)]
    assert tuning == [t.entry for t in Tuning(most).trials(lambda _: None)]
    for size in {entry.size for entry in tuning}:
        own = {entry.seed for entry in tuning if entry.size == size}
        assert len(own) == 3
        assert not own & set(most.space.seeds_at(size, 0))
    given = {f"d{dim}-L4": 0.02 for dim in (16, 24, 32)}
    every = {**SPACE, "seed": {"each": 100}}
    tune = {"key": "optim.lr", "values": given, "per": ["size"]}
    path = lab.sweep(space=every, function=FUNCTION, tune=tune)
    assert len(Tuning(Plan(load_spec(path))).trials(lambda _: None)) == 600, "nothing is tuned"


def test_values_for_no_cell_or_none_for_a_cell_are_refused(lab: Lab) -> None:
    values = {size: {"baseline": 0.02, "full": 0.01} for size in ("d16-L4", "d24-L4", "d32-L4")}
    wrong = [
        ({**values, "d64-L4": {"full": 1.0}}, "tune.values.d64-L4.full: no such cell"),
        ({**values, "d16-L4": {"full": 1.0}}, "tune.values: no value for d16-L4.baseline"),
        ({**values, "d16-L4": 1.0}, "no value for d16-L4.baseline"),
        ({**values, "d16-L4": {"full": 0, "baseline": 1}}, "should be a positive number, got 0"),
    ]
    for some, line in wrong:
        tune = {"key": "optim.lr", "values": some}
        with pytest.raises(UserError, match=line):
            Tuning(Plan(load_spec(lab.sweep(space=SPACE, function=FUNCTION, tune=tune))))
