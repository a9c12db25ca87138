"""Sweeps under ``tune``: what runs, at which values and seeds, whatever happens in between."""

from __future__ import annotations

import json
import math
import re
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.report import write_report
from attnres_lab.config import RunConfig
from attnres_lab.runs.folder import RunFolder
from attnres_lab.runs.tuning import MOST
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.planview import print_plan
from attnres_lab.sweep.process import TRAIN
from attnres_lab.sweep.spec import load_spec
from attnres_lab.sweep.tuning import Tuning
from tests.sweep.conftest import Lab, in_process, study_states

TUNE = {"key": "optim.lr", "start": 1e-2}
SPACE = {
    "size": {f"d{dim}": {"model.dim": dim} for dim in (16, 24, 32)},
    "model.residual": ["baseline", "full"],
    "seed": {"each": 2},
}
FUNCTION = "tests.sweep.test_tuning:bowl"


def best_rate(dim: int, variant: str) -> float:
    """Falls as the root of the width; the variant's is half the baseline's."""
    return float(0.04 * (16 / dim) ** 0.5 / (1 if variant == "baseline" else 2))


def flops_of(config: RunConfig) -> float:
    return 1e8 * float(config.model.dim) ** 2


def loss_at(config: RunConfig) -> float:
    """A power law of the compute, 1.25 times of it for the variant, and a parabola in the log of
    the rate.
    """
    away = math.log2(config.optim.lr / best_rate(config.model.dim, config.variant))
    compute = flops_of(config) * (1 if config.variant == "baseline" else 1.25)
    return 15 * compute**-0.08 + 0.1 * away**2 + 1e-4 * (config.seed % 7)


def bowl(config: RunConfig, folder: Path) -> dict[str, float]:
    return {"val/loss": loss_at(config), "flops": flops_of(config), "device_seconds": 3.6}


def other_bowl(config: RunConfig, folder: Path) -> dict[str, float]:
    """Best at a decay of .15, and at a multiplier of .5, which the baseline has no use for."""
    loss = 2.0 + 0.1 * math.log2(config.optim.weight_decay / 0.15) ** 2
    if config.variant != "baseline":
        loss += 0.1 * math.log2(config.optim.residual_lr_mult / 0.5) ** 2
    return {"val/loss": loss}


def slow_bowl(config: RunConfig, folder: Path) -> dict[str, float]:
    (folder.parent.parent / f"started-{time.time_ns()}").touch()
    time.sleep(0.1)
    return bowl(config, folder)


def breaks_above(config: RunConfig, folder: Path) -> dict[str, float]:
    """A loss that falls with the rate, up to where runs diverge."""
    if config.optim.lr > 0.03:
        RunFolder(folder).set_status("diverged", message="loss is nan", step=3)
        return {}
    return {"val/loss": 2.0 - config.optim.lr}


def pruned_above(config: RunConfig, folder: Path) -> dict[str, float]:
    """Logs a row and, above 0.03, waits to be given up for it."""
    run = RunFolder(folder)
    run.append_metrics({"step": 1, "time": time.time(), "val/loss": config.optim.lr})
    while config.optim.lr > 0.03:
        time.sleep(0.02)
        if run.stop.exists():
            run.set_status("pruned", step=1)
            return {}
    return {"val/loss": 2.0 - config.optim.lr}


def tuned(lab: Lab, **changes: Any) -> Path:
    tune = TUNE | changes.pop("tune", {})
    return lab.sweep(**{"space": SPACE, "function": FUNCTION, "tune": tune, **changes})


def rates(lab: Lab, *, tuning: bool) -> dict[tuple[str, str], list[float]]:
    """Of the trials of that kind, by cell, without repetition."""
    found: dict[tuple[str, str], set[float]] = {}
    for entry in lab.folder.plan():
        if entry.tuning == tuning:
            cell = found.setdefault((entry.size, entry.variant), set())
            cell.add(entry.params["optim.lr"])
    return {cell: sorted(values) for cell, values in found.items()}


def test_each_cell_is_measured_at_its_own_vertex_on_fresh_seeds(lab: Lab) -> None:
    assert lab.run(tuned(lab)).exit_code == 0
    entries = lab.folder.plan()
    assert set(lab.states().values()) == {"finished"}
    measured = rates(lab, tuning=False)
    assert len(measured) == 6
    for (size, variant), found in measured.items():
        assert found == [pytest.approx(best_rate(int(size[1:3]), variant), rel=1e-4)]
    for size in {entry.size for entry in entries}:
        tuning, measuring = (
            {e.seed for e in entries if e.size == size and e.tuning == kind}
            for kind in (True, False)
        )
        assert (len(tuning), len(measuring)) == (1, 2), "the same ones for both arms"
        assert not tuning & measuring
    assert set(study_states(lab)) == {"COMPLETE"}
    recorded = study_states(lab)
    lab.folder.journal.unlink()
    assert lab.run(tuned(lab)).done == len(entries), "a second run runs nothing"
    assert study_states(lab) == recorded, "the record is written again from the folders"


def test_the_trials_extend_at_an_edge_and_only_there(lab: Lab) -> None:
    lab.run(tuned(lab))
    tried = rates(lab, tuning=True)
    assert tried["d16-L4", "baseline"] == [5e-3, 1e-2, 2e-2, 4e-2, 8e-2], "its best is 4e-2"
    assert tried["d32-L4", "full"] == [5e-3, 1e-2, 2e-2, 4e-2][: len(tried["d32-L4", "full"])]


def test_smallest_first_finishes_a_cell_before_the_next_begins(lab: Lab) -> None:
    """Three rates, two more at the edge, then its two measuring runs."""
    lab.run(tuned(lab, order="smallest", stop={"trials": 7}, launcher={"workers": 1}))
    states = lab.states()
    done = [e for e in lab.folder.plan() if states[e.hash] == "finished"]
    assert {(e.size, e.variant) for e in done} == {("d16-L4", "baseline")}
    assert sorted(e.tuning for e in done) == [False] * 2 + [True] * 5


@pytest.mark.parametrize(
    ("function", "lost", "changes"),
    [
        ("breaks_above", "diverged", {}),
        ("pruned_above", "pruned", {"pruner": {"name": "threshold", "options": {"upper": 0.03}}}),
    ],
)
def test_a_rate_that_is_lost_is_an_edge_and_the_one_below_it_is_taken(
    lab: Lab, function: str, lost: str, changes: dict[str, Any]
) -> None:
    path = tuned(lab, function=f"tests.sweep.test_tuning:{function}", **changes)
    assert lab.run(path).exit_code == 0
    tried = (5e-3, 1e-2, 2e-2, 4e-2)
    assert {tuple(found) for found in rates(lab, tuning=True).values()} == {tried}
    assert {tuple(found) for found in rates(lab, tuning=False).values()} == {(2e-2,)}
    assert sorted(set(lab.states().values())) == sorted(["finished", lost])


def test_larger_sizes_take_the_law_of_the_smallest(lab: Lab) -> None:
    lab.run(tuned(lab, tune={"from": "2 smallest sizes"}))
    assert {size for size, _ in rates(lab, tuning=True)} == {"d16-L4", "d24-L4"}
    measured = rates(lab, tuning=False)
    assert len(measured) == 6
    for variant in ("baseline", "full"):  # parameters are not quite the square of the width
        assert measured["d32-L4", variant] == [pytest.approx(best_rate(32, variant), rel=0.03)]
    assert "At d32-L4 it lies on the line" in report_of(lab)


@pytest.mark.parametrize(
    ("key", "start", "best"),
    [
        ("optim.weight_decay", 0.1, {"baseline": 0.15, "full": 0.15}),
        ("optim.residual_lr_mult", 1.0, {"baseline": 1.0, "full": 0.5}),
    ],
)
def test_any_positive_key_can_be_tuned(
    lab: Lab, key: str, start: float, best: dict[str, float]
) -> None:
    """A flat bowl, the baseline's of a multiplier that does nothing there, stays at the start."""
    space = {**SPACE, "size": {"d16": {"model.dim": 16}}, "seed": {"each": 1}}
    function = "tests.sweep.test_tuning:other_bowl"
    path = tuned(lab, space=space, function=function, tune={"key": key, "start": start})
    assert lab.run(path).exit_code == 0
    measured = {e.variant: e.params[key] for e in lab.folder.plan() if not e.tuning}
    assert measured == {variant: pytest.approx(value, rel=1e-4) for variant, value in best.items()}


def test_values_that_are_given_are_measured_without_tuning(lab: Lab) -> None:
    values = {size: {"baseline": 0.02, "full": 0.01} for size in ("d16-L4", "d24-L4", "d32-L4")}
    tune = {"key": "optim.lr", "values": values}
    path = lab.sweep(space=SPACE, function=FUNCTION, tune=tune)
    assert lab.run(path).done == 12
    assert {v: r for (_, v), r in rates(lab, tuning=False).items()} == {
        "baseline": [0.02],
        "full": [0.01],
    }


def test_one_value_for_all_variants_of_a_size_and_a_larger_factor(lab: Lab) -> None:
    lab.run(tuned(lab, tune={"per": ["size"], "factor": 4, "seeds": 2}))
    measured = rates(lab, tuning=False)
    for dim in (16, 24, 32):
        shared = math.sqrt(best_rate(dim, "baseline") * best_rate(dim, "full"))
        for variant in ("baseline", "full"):
            assert measured[f"d{dim}-L4", variant] == [pytest.approx(shared, rel=1e-4)]
    assert sum(entry.tuning for entry in lab.folder.plan()) % 4 == 0, "two arms, two seeds"


def finish(plan: Plan, order: Random) -> list[str]:
    """The trials of a sweep whose runs end in a random order; the plan only ever grows."""
    results: dict[str, float] = {}
    planned = {t.entry.hash: t for t in Tuning(plan).trials(results.get)}
    while left := sorted(set(planned) - set(results)):
        for hash in order.sample(left, min(len(left), order.randint(1, 20))):
            results[hash] = loss_at(planned[hash].config)
        grown = {t.entry.hash: t for t in Tuning(plan).trials(results.get)}
        assert set(planned) <= set(grown)
        planned = grown
    return sorted(planned)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(order=st.randoms(use_true_random=False))
def test_whatever_ends_first_the_same_trials_are_run(order: Random, lab: Lab) -> None:
    plan = Plan(load_spec(tuned(lab)))
    found = finish(plan, order)
    assert found == finish(plan, Random(0))
    assert 12 + 6 * 3 <= len(found) <= 12 + 6 * MOST


@pytest.mark.parametrize(
    ("tune", "expected", "most"),
    [({}, 12 + 6 * 4, 12 + 6 * MOST), ({"from": "2 smallest sizes"}, 12 + 4 * 4, 12 + 4 * MOST)],
)
def test_the_plan_prices_the_trials_that_are_not_known_yet(
    lab: Lab, capsys: pytest.CaptureFixture[str], tune: dict[str, Any], expected: int, most: int
) -> None:
    print_plan(load_spec(tuned(lab, tune=tune, function=TRAIN)), lab.folder)
    before = capsys.readouterr().out
    assert f"with tuning, expected: {expected} trials, " in before
    assert f"with tuning, at most: {most} trials, " in before
    flops = [float(found) for found in re.findall(r"with tuning.* trials, (\S+) FLOPs", before)]
    alike = not tune  # else the larger sizes are measured only
    assert (flops[1] / flops[0] == pytest.approx(most / expected, rel=0.02)) == alike
    lab.run(path := tuned(lab, tune=tune))
    capsys.readouterr()
    print_plan(load_spec(path), lab.folder)
    after = capsys.readouterr().out
    assert "nothing to do" in after
    assert "with tuning" not in after


def report_of(lab: Lab) -> str:
    out = lab.path / "report"
    write_report("s", out, spec=lab.path / "sweep.yaml", folder=lab.folder.path)
    return (out / "report.md").read_text()


def outcome(lab: Lab) -> tuple[list[Any], dict[str, dict[str, Any]], str]:
    """What a sweep came to: its trials, their results, its report."""
    plan = sorted((e.hash, e.seed, e.tuning, e.params["optim.lr"]) for e in lab.folder.plan())
    results = {hash: json.loads(lab.folder.trial(hash).result.read_text()) for hash, *_ in plan}
    return plan, results, report_of(lab)


@pytest.mark.slow
def test_twenty_random_kills_change_neither_trials_nor_rates_nor_report(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coordinators and trials are killed at random moments while trials are pending."""
    path, order = tuned(lab, function="tests.sweep.test_tuning:slow_bowl"), Random(0)
    for _ in range(20):
        coordinator = in_process(lab.run, path)
        before = len(list(lab.folder.path.glob("started-*")))
        while coordinator.is_alive() and len(list(lab.folder.path.glob("started-*"))) == before:
            time.sleep(0.01)
        assert coordinator.is_alive(), "the sweep was over before the last kill"
        time.sleep(order.uniform(0, 0.2))
        victims = [psutil.Process(coordinator.pid)]
        victims += victims[0].children(recursive=True)
        with suppress(psutil.NoSuchProcess):
            order.choice(victims).kill()
        coordinator.kill()
        coordinator.join()
    assert lab.run(path).exit_code == 0
    killed = outcome(lab)
    monkeypatch.setenv("ATTNRES_RUNS", str(lab.path / "undisturbed" / "runs"))
    calm = Lab(lab.path / "undisturbed")
    path = tuned(calm, function="tests.sweep.test_tuning:slow_bowl")
    assert calm.run(path).exit_code == 0
    assert killed == outcome(calm)
