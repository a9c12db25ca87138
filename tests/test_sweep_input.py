"""What a newcomer gets wrong in a sweep file, and what the lab says to it before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attnres_lab.errors import UserError
from attnres_lab.sweep.plan import Planner
from attnres_lab.sweep.spec import load_spec
from tests.sweep.conftest import Lab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ATTNRES_CACHE", str(tmp_path / "cache"))
    return Lab(tmp_path)


def refusal(lab: Lab, **changes: Any) -> str:
    """The one line that making a plan of the changed sweep ends with."""
    with pytest.raises(UserError) as error:
        Planner(load_spec(lab.sweep(**changes))).grid()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "space",
    [
        {"budget.steps": [20], "budget.tokens": [1000]},
        {"budget.steps": [20], "size": {"s": {"model.dim": 32, "budget.tokens": 1000}}},
        {"size": {"s": {"budget.steps": 20, "budget.tokens": 1000}}},
        {"budget": [{"steps": 20, "tokens": [1000]}]},
        {"budget": [{"steps": 20}], "budget.tokens": [1000]},
    ],
)
def test_two_budgets_in_a_space_are_refused_with_both_keys(lab: Lab, space: dict[str, Any]) -> None:
    message = refusal(lab, space=space)
    assert "sweep.yaml:" in message
    assert "budget.steps and budget.tokens are set together" in message


def test_budgets_that_exclude_each_other_are_one_axis(lab: Lab) -> None:
    sizes = {"s": {"model.dim": 32, "budget.steps": 20}, "m": {"model.dim": 64, "budget.tokens": 2560}}
    for space in ({"size": sizes}, {"budget": [{"steps": 20}, {"tokens": 2560}]}, {"budget": [{"steps": [20, 10]}]}):
        assert [t.config.steps for t in Planner(load_spec(lab.sweep(space=space))).grid()] == [20, 10]


def test_an_override_of_the_budget_replaces_that_of_the_base(lab: Lab) -> None:
    (trial,) = Planner(load_spec(lab.sweep(overrides={"budget.tokens": 2560}, space={"seed": [0]}))).grid()
    assert trial.config.steps == 10
    assert "give exactly one" in refusal(lab, overrides={"budget.tokens": 2560, "budget.flops": 1e12})
