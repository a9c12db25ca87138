"""A study's file, at several scales: what lies over what, and mistakes told at their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnres_lab.errors import UserError
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.spec import load_spec
from tests.sweep.conftest import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_a_scale_lies_over_the_study_which_lies_over_what_all_studies_share(lab: Lab) -> None:
    (lab.path / "scales.yaml").write_text(
        "a: {base: base.yaml, space: {seed: [0]}, launcher: {workers: 2}}\n"
        "b: {base: base.yaml, space: {seed: [1]}}\n"
    )
    study = lab.sweep(
        "name: s\nquestion: 'Why: so?'\nspace: {optim.lr: [1e-3], seed: [5, 6]}\nscales:\n"
        "  a: {space: {model.dim: [32, 64]}}\n  b: {space: {seed: [7]}}\n"
    )
    a, b = (Plan(load_spec(study, scale)) for scale in "ab")
    assert (a.spec.name, b.spec.name) == ("s-a", "s-b")
    assert a.spec.question == "Why: so?"
    assert (a.spec.launcher.workers, b.spec.launcher.workers) == (2, None)
    assert [(t.config.model.dim, t.entry.seed) for t in a.known()] == [
        (32, 5),
        (32, 6),
        (64, 5),
        (64, 6),
    ]
    assert [t.entry.seed for t in b.known()] == [7]
    # what a sweep's folder keeps is a sweep of its own
    again = lab.path / "again.yaml"
    again.write_text(a.source.file.text)
    assert [t.entry for t in Plan(load_spec(again)).known()] == [t.entry for t in a.known()]


def test_a_base_may_be_a_shipped_experiment(lab: Lab) -> None:
    (trial,) = Plan(load_spec(lab.sweep(base="tiny", space={"seed": [0]}))).known()
    assert trial.config.name == "tiny"


def test_mistakes_in_a_study_are_told_at_the_line_that_makes_them(lab: Lab) -> None:
    (lab.path / "scales.yaml").write_text("a:\n  base: base.yaml\n  launcher: {wrkers: 2}\n")
    study = lab.sweep("name: s\nspace: {seed: [0]}\nscales:\n  b:\n    trials: 3\n")
    for scale, words in {
        None: r"sweep\.yaml:3: scales: a study at several scales; give --scale a\|b",
        "c": r"sweep\.yaml:3: scales: no scale 'c'; give --scale a\|b",
        "a": r"scales\.yaml:3: launcher\.wrkers: unknown key, did you mean 'workers'\?",
        "b": r"sweep\.yaml: base: ",
    }.items():
        with pytest.raises(UserError, match=words):
            load_spec(study, scale)
    with pytest.raises(UserError, match=r"sweep\.yaml: has no scales; leave --scale a out"):
        load_spec(lab.sweep(), "a")
    (lab.path / "scales.yaml").unlink()
    own = lab.sweep("name: s\nbase: base.yaml\nspace: {seed: [0]}\nscales:\n  b:\n    trials: 3\n")
    with pytest.raises(UserError, match=r"sweep\.yaml:6: trials: a grid has its own number"):
        load_spec(own, "b")
