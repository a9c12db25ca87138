"""A sweep runs what is pending, once, and records it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from attnres_lab.config import content_hash
from attnres_lab.errors import UserError
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.planview import print_plan
from attnres_lab.sweep.spec import load_spec
from attnres_lab.sweep.trials import Trial
from tests.sweep.conftest import Lab, study_states
from tests.sweep.synthetic import expected


def test_every_planned_trial_is_finished_once_and_recorded(lab: Lab) -> None:
    outcome = lab.run(lab.sweep(function="tests.sweep.synthetic:chain"))
    assert (outcome.done, outcome.failed, outcome.pending, outcome.exit_code) == (4, 0, 0, 0)
    finished = [line[1] for line in lab.witness() if line[0] == "finish"]
    assert sorted(finished) == sorted(lab.states())
    assert study_states(lab) == ["COMPLETE"] * 2  # a point is one trial there, whatever its seeds


def test_a_finished_sweep_runs_nothing_again(lab: Lab) -> None:
    path = lab.sweep(function="tests.sweep.synthetic:chain")
    lab.run(path)
    before = lab.witness()
    assert lab.run(path).exit_code == 0
    assert lab.witness() == before
    assert study_states(lab) == ["COMPLETE"] * 2


def test_a_grown_grid_runs_only_its_new_points_and_a_reordered_one_none(lab: Lab) -> None:
    change = {"function": "tests.sweep.synthetic:chain"}
    lab.run(lab.sweep(**change))
    old = set(lab.states())
    lab.run(lab.sweep(space={"seed": [1, 0], "optim.lr": [3e-3, 1e-3]}, **change))
    assert set(lab.states()) == old
    assert sum(line[0] == "start" for line in lab.witness()) == 4
    lab.run(lab.sweep(space={"seed": [0, 1, 2], "optim.lr": [1e-3, 3e-3, 1e-2]}, **change))
    assert old < set(lab.states())
    starts = [line[1] for line in lab.witness() if line[0] == "start"]
    assert len(starts) == 9
    assert len(set(starts)) == 9
    assert study_states(lab) == ["COMPLETE"] * 3


def test_the_record_can_be_rebuilt_from_the_folders(lab: Lab) -> None:
    path = lab.sweep()
    lab.run(path)
    lab.folder.journal.unlink()
    lab.run(path)
    assert study_states(lab) == ["COMPLETE"] * 2


def test_a_database_keeps_the_study_of_a_space_that_was_left(lab: Lab) -> None:
    """A grown grid is another study there, with all its points; what the first one holds stays."""
    import optuna

    url = f"sqlite:///{lab.path}/optuna.db"
    lab.run(lab.sweep(storage=url))
    lab.run(lab.sweep(storage=url, space={"optim.lr": [1e-3, 3e-3, 1e-2], "seed": [0, 1]}))
    counts = [
        len(optuna.load_study(study_name=name, storage=url).trials)
        for name in optuna.get_all_study_names(url)
    ]
    assert sorted(counts) == [2, 3]


def test_weights_of_another_model_in_a_trials_folder_are_refused(lab: Lab) -> None:
    """Nothing is trained on top of them, and the message says what to do."""
    path = lab.sweep(space={"seed": [0]}, function="attnres_lab.training.run:run")
    (trial,) = Plan(load_spec(path)).known()
    run = lab.folder.trial(trial.entry.hash)
    run.checkpoint.parent.mkdir(parents=True)
    torch.save({"config_hash": content_hash(replace(trial.config, seed=1))}, run.checkpoint)
    assert lab.run(path).exit_code == 1
    assert (run.status().state, run.status().failure) == ("failed", "config")
    assert "this checkpoint belongs to another config" in run.status().message
    assert not run.result.exists()


def test_the_largest_trial_starts_first(lab: Lab) -> None:
    size = {
        "s": {"model.dim": 32},
        "l": {"model.dim": 64},
        "m": {"model.dim": 48, "model.num_heads": 3},
    }
    lab.run(
        lab.sweep(
            space={"size": size}, launcher={"workers": 1}, function="tests.sweep.synthetic:chain"
        )
    )
    order = [line[1] for line in lab.witness() if line[0] == "start"]
    label = {e.hash: e.params["size"] for e in lab.folder.plan()}
    assert [label[h] for h in order] == ["l", "m", "s"]


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_a_search_proposes_the_points_asked_for_with_all_their_seeds(
    lab: Lab, sampler: str
) -> None:
    space = {
        "optim.lr": {"log": [1e-4, 1e-1]},
        "model.residual": [
            {"name": "baseline"},
            {"name": "block", "num_blocks": {"range": [2, 8]}},
        ],
        "seed": [0, 1],
    }
    path = lab.sweep(space=space, sampler={"name": sampler}, trials=5)
    assert lab.run(path).done == 10
    points = {e.point: e.params for e in lab.folder.plan()}
    assert len(points) == 5
    assert all(
        ("model.residual.num_blocks" in p) == (p["model.residual"] == "block")
        for p in points.values()
    )
    assert lab.run(path).done == 10
    assert study_states(lab) == ["COMPLETE"] * 5
    more = lab.sweep(space=space, sampler={"name": sampler}, trials=7)
    assert lab.run(more).done == 14  # a resumed sampler does not propose the same again


def test_a_function_in_place_of_training_is_part_of_a_trial_s_identity(lab: Lab) -> None:
    """What a stub returned must not stand as the result of another function, nor of training."""
    plain = lab.sweep()
    stub = Plan(load_spec(plain)).known()
    other = Plan(load_spec(lab.sweep(function="tests.sweep.synthetic:chain"))).known()
    trained = Plan(load_spec(lab.sweep(function="attnres_lab.training.run:run"))).known()
    hashes = [{t.entry.hash for t in plan} for plan in (stub, other, trained)]
    assert len(set.union(*hashes)) == 12
    assert len({t.entry.point for plan in (stub, other, trained) for t in plan}) == 6
    assert [t.entry.hash for t in trained] == [content_hash(t.config) for t in trained]
    lab.run(lab.sweep())
    assert lab.run(lab.sweep()).done == 4


def test_a_changed_plan_and_a_second_file_of_one_name_say_what_they_do(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.run(lab.sweep())
    print_plan(load_spec(lab.sweep()), lab.folder)
    assert "note:" not in capsys.readouterr().out
    changed = lab.sweep(space={"optim.lr": [1e-3, 2e-3], "seed": [0, 1]})
    said = "2 of its 4 trials were planned before; 2 that ran before are no part of it"
    print_plan(load_spec(changed), lab.folder)
    assert f"note: the plan has changed: {said}" in capsys.readouterr().out
    second = changed.rename(lab.path / "second.yaml")
    lab.run(second)
    out = capsys.readouterr().out
    assert out.index("another file of the name 's': ") < out.index(said) < out.index("finished")
    assert "another name keeps both" in out
    assert len(lab.folder.plan()) == 4
    assert len(list(lab.folder.trials.iterdir())) == 6  # what ran before stays
    lab.run(second)
    assert "another file" not in capsys.readouterr().out


class _InTwo(Plan):
    """The first point, and the others once it is done; what is known is proposed again."""

    def known(self) -> list[Trial]:
        return super().known()[:2]

    def more(self, trials: Mapping[str, Trial], study: Any) -> list[Trial]:
        done = all(trial.state == "done" for trial in trials.values())
        return super().known() if done else []


def test_a_plan_may_add_trials_once_its_first_are_done(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "attnres_lab.sweep.engine.make_plan", lambda source, folder, **_: _InTwo(source)
    )
    path = lab.sweep(function="tests.sweep.synthetic:chain", launcher={"workers": 4})
    assert lab.run(path).done == 4
    events = [(line[0], line[1]) for line in lab.witness()]
    first = {entry.hash for entry in lab.folder.plan()[:2]}
    assert {hash for _, hash in events[:4]} == first
    assert sorted(event for event, _ in events) == ["finish"] * 4 + ["start"] * 4
    assert study_states(lab) == ["COMPLETE"] * 2
    assert lab.run(path).done == 4
    assert len(lab.witness()) == 8


def test_a_small_search_space_ends(lab: Lab) -> None:
    """Points that were proposed before are not run again, and count."""
    assert (
        lab.run(
            lab.sweep(space={"optim.lr": [1e-3, 3e-3]}, sampler={"name": "random"}, trials=8)
        ).done
        == 2
    )
    assert len(study_states(lab)) == 8


def test_a_proposed_point_that_makes_no_run_costs_a_search_nothing(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"model.num_heads": [2, 3], "optim.lr": {"log": [1e-3, 1e-2]}, "seed": [0]}
    search = {"sampler": {"name": "random"}, "trials": 8}
    assert lab.run(lab.sweep(space=space, **search)).done == 8
    states = study_states(lab)
    assert states.count("COMPLETE") == 8
    assert states.count("FAIL") == len(states) - 8 > 0
    assert capsys.readouterr().out.count("sweep.yaml:4: model.num_heads: ") == 1
    never = lab.sweep(name="never", space={**space, "model.num_heads": [3, 5]}, **search)
    with pytest.raises(UserError, match="heads do not divide"):
        lab.run(never)


def test_a_function_that_is_none_is_refused_before_anything_starts(lab: Lab) -> None:
    with pytest.raises(UserError, match=r"sweep\.yaml:\d+: function: .*quikc.*importable"):
        lab.run(lab.sweep(function="tests.sweep.synthetic:quikc"))
    assert not lab.folder.path.exists()


def test_a_function_that_returns_a_bare_number_fails_its_trial_in_a_line(lab: Lab) -> None:
    lab.run(lab.sweep(function="tests.sweep.synthetic:bare", space={"seed": [0]}))
    (status,) = [lab.folder.trial(hash).status() for hash in lab.states()]
    assert (status.state, status.failure) == ("failed", "config")
    assert status.message.startswith("function: returned float; return a mapping such as")


def test_a_run_that_is_refused_leaves_the_plan_as_it_was(lab: Lab) -> None:
    lab.run(lab.sweep())
    before, text = lab.folder.plan(), lab.folder.description.read_text()
    trains = "attnres_lab.training.run:run"
    with pytest.raises(UserError, match=r"resources\.memory_gb has 0\.0"):
        lab.run(lab.sweep(function=trains, resources={"memory_gb": 1e-6}))
    assert lab.folder.plan() == before
    assert lab.folder.description.read_text() == text


def test_failures_are_classified_and_retried_by_kind(lab: Lab) -> None:
    outcome = lab.run(
        lab.sweep(space={"seed": [0, 1, 2, 3, 4, 5, 6]}, function="tests.sweep.synthetic:fails")
    )
    status = {e.seed: lab.folder.trial(e.hash).status() for e in lab.folder.plan()}
    assert {s: (v.state, v.failure) for s, v in status.items()} == {
        0: ("finished", None),
        1: ("failed", "bug"),
        2: ("failed", "out_of_memory"),
        3: ("finished", None),  # killed, then retried
        4: ("finished", None),  # infrastructure, then retried
        5: ("diverged", None),
        6: ("failed", "bug"),
    }
    assert "a bug" in status[1].message
    assert outcome.exit_code == 1
    log = lab.folder.trial(next(e.hash for e in lab.folder.plan() if e.seed == 1)).log.read_text()
    assert "ValueError: a bug" in log
    assert study_states(lab) == []  # the point is pending, not recorded


def test_a_failed_trial_is_pending_in_the_next_run(lab: Lab) -> None:
    path = lab.sweep(space={"seed": [0, 6]}, function="tests.sweep.synthetic:fails")
    assert lab.run(path).exit_code == 1
    assert lab.run(path).exit_code == 0
    assert study_states(lab)[-1] == "COMPLETE"


def test_interrupted_trials_go_on_from_their_checkpoints(lab: Lab) -> None:
    path = lab.sweep(function="tests.sweep.synthetic:chain")
    lab.run(path)
    for entry in lab.folder.plan():
        run = lab.folder.trial(entry.hash)
        result = json.loads(run.result.read_text())
        from attnres_lab.config import load

        assert result["value"] == expected(load(run.config))
