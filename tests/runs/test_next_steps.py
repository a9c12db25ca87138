"""The tuned protocol as a function of results: the same trials in any order, few of them, edges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnres_lab.runs.tuning import MOST, Choice, along, next_steps, value_at, vertex

LOSSES = st.one_of(st.floats(0.1, 10.0), st.sampled_from([math.inf, math.nan]))
CURVES = st.lists(LOSSES, min_size=2 * MOST + 3, max_size=2 * MOST + 3)


def tune(curve: Mapping[int, float], order: Random) -> tuple[dict[int, float], Choice]:
    """Run to the end, one result at a time, asking again after each: as after a crash each time."""
    losses: dict[int, float] = {}
    while not isinstance(asked := next_steps(losses), Choice):
        step = order.choice(asked)
        assert step not in losses
        losses[step] = curve[step]
    return losses, asked


def curve_of(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values, -(len(values) // 2)))


@given(CURVES, st.integers(0, 99), st.integers(0, 99))
def test_any_order_of_completion_gives_the_same_trials_and_choice(
    values: list[float], first: int, second: int
) -> None:
    one, other = (tune(curve_of(values), Random(seed)) for seed in (first, second))
    assert set(one[0]) == set(other[0])
    assert one[1] == other[1]


@given(CURVES)
def test_tries_are_bounded_and_the_choice_is_at_the_lowest_loss_tried(values: list[float]) -> None:
    losses, choice = tune(curve_of(values), Random(0))
    assert 3 <= len(losses) <= MOST
    assert sorted(losses) == list(range(min(losses), max(losses) + 1))
    finite = {step: loss for step, loss in losses.items() if math.isfinite(loss)}
    if finite:
        lowest = min(finite.values())
        assert any(loss == lowest and abs(choice.step - k) <= 0.5 for k, loss in finite.items())
    inside = min(losses) < choice.step < max(losses)
    assert (choice.kind == "edge") == (not inside)


@given(st.floats(-2.5, 2.5), st.floats(0.01, 5.0))
def test_the_minimum_of_a_parabola_is_found_exactly(best: float, curvature: float) -> None:
    curve = {step: 2 + curvature * (step - best) ** 2 for step in range(-9, 10)}
    losses, choice = tune(curve, Random(0))
    assert choice.step == pytest.approx(best, abs=1e-9)
    assert len(losses) == max(3, 3 + math.ceil(abs(best) - 0.5 - 1e-12))


@given(
    st.tuples(st.floats(0.1, 3.0), st.floats(0.1, 3.0)),
    st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
)
def test_the_vertex_is_that_of_a_fitted_parabola(
    gaps: tuple[float, float], above: tuple[float, float]
) -> None:
    x = (2 - gaps[0], 2.0, 2 + gaps[1])
    y = (1.5 + above[0], 1.5, 1.5 + above[1])
    found = vertex(x, y)
    assert (x[0] + x[1]) / 2 - 1e-9 <= found.at <= (x[1] + x[2]) / 2 + 1e-9
    if sum(above) > 1e-3:
        a, b, c = np.polyfit(x, y, 2)
        assert found == pytest.approx((-b / (2 * a), c - b**2 / (4 * a), a), rel=1e-6, abs=1e-6)


def test_a_flat_bowl_has_its_vertex_in_the_middle() -> None:
    assert vertex((-1, 0, 1), (1.5, 1.5, 1.5)) == (0, 1.5, 0.0)


def test_the_tries_go_on_while_the_lowest_is_at_an_end() -> None:
    assert next_steps({}) == (-1, 0, 1)
    assert next_steps({-1: 3.0, 0: 2.0}) == (1,)
    assert next_steps({-1: 3.0, 0: 2.0, 1: 1.0}) == (2,)
    assert next_steps({-1: 1.0, 0: 2.0, 1: 3.0}) == (-2,)
    falling = {step: -float(step) for step in range(-1, 20)}
    assert next_steps(falling) == Choice(MOST - 2, "edge")


def test_a_value_that_diverges_is_worse_than_any() -> None:
    assert next_steps({-1: 3.0, 0: 2.0, 1: math.inf}) == Choice(0, "neighbour")
    assert next_steps({-1: 2.0, 0: math.nan, 1: math.inf}) == (-2,)
    assert next_steps({-2: 2.1, -1: 2.0, 0: math.nan, 1: math.inf}) == Choice(-1, "neighbour")
    assert next_steps(dict.fromkeys((-1, 0, 1), math.inf)) == (-2,), "where all do, lower ones"
    nowhere = dict.fromkeys(range(-20, 2), math.inf)
    assert next_steps(nowhere) == Choice(2 - MOST, "edge")


def test_the_law_of_the_best_value_is_a_line_over_log_size() -> None:
    sizes = [1e4, 3e4, 1e5]
    steps = [1.5 - 0.5 * math.log(size) for size in sizes]
    assert along(sizes, steps, 1e7) == pytest.approx(1.5 - 0.5 * math.log(1e7))


def test_values_are_written_to_six_digits() -> None:
    assert [value_at(1.2e-2, 2, step) for step in (-1, 0, 1)] == [6e-3, 1.2e-2, 2.4e-2]
    assert value_at(0.1, 3, 1) == 0.3, "not 0.30000000000000004"
