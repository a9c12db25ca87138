"""A lost Optuna study comes back from the sweep's files."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.sweep.restore import restore_study
from tests.sweep.conftest import Lab

SPACE = {"optim.lr": [3e-3, 3.1e-3, 9e-1], "seed": [0, 1]}
MEDIAN = {"name": "median", "options": {"n_startup_trials": 2, "n_warmup_steps": 2}}
SWEEPS: dict[str, dict[str, Any]] = {
    "grid": {},
    "median": {
        "space": SPACE,
        "pruner": MEDIAN,
        "launcher": {"workers": 1},
        "function": "tests.sweep.synthetic:chain",
    },
    "wilcoxon": {
        "space": {"optim.lr": [3e-3, 9e-1], "seed": list(range(8))},
        "pruner": {"name": "wilcoxon"},
        "launcher": {"workers": 1},
    },
    "tpe": {
        "space": {"optim.lr": {"log": [1e-4, 1e-1, 9]}, "seed": [0, 1]},
        "sampler": {"name": "tpe"},
        "trials": 4,
    },
    "two objectives": {
        "objective": [{"metric": "val/loss"}, {"metric": "seconds", "direction": "maximize"}]
    },
}


def record(lab: Lab) -> dict[str, Any]:
    """By point, all that the study holds but the order and the clock."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study = optuna.load_study(
        study_name="s", storage=JournalStorage(JournalFileBackend(str(lab.folder.journal)))
    )
    points = {
        t.user_attrs["point"]: (t.state.name, t.params, t.values, t.user_attrs["runs"])
        for t in study.trials
    }
    assert len(points) == len(study.trials)
    steps = {
        (t.user_attrs["point"], *item)
        for t in study.trials
        for item in t.intermediate_values.items()
    }
    return {
        "points": points,
        "directions": study.directions,
        "attributes": study.user_attrs,
        "steps": steps,
    }


@pytest.mark.parametrize("changes", SWEEPS.values(), ids=SWEEPS)
def test_a_lost_study_is_restored_point_for_point(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """States, parameters, values, intermediate values; what is there is not recorded again. No
    temporary file, which a kill would leave with the password that may be in the sweep's YAML.
    """
    monkeypatch.setattr("tempfile.mkdtemp", None)
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.1")
    path = lab.sweep(**changes)
    lab.run(path)
    before = record(lab)
    lab.folder.journal.unlink()
    path.unlink()  # only the sweep's folder is needed
    assert restore_study(lab.folder) == len(before["points"])
    after = record(lab)
    # the last rows of a run may end it before a pruner sees them
    assert before.pop("steps") <= after.pop("steps")
    assert after == before
    assert restore_study(lab.folder) == 0


def test_track_rebuild_restores_the_study_beside_the_store(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command for both mirrors."""
    lab.run(lab.sweep())
    before = record(lab)
    lab.folder.journal.unlink()
    monkeypatch.setattr("attnres_lab.tracking.rebuild", lambda folder: iter([lab.folder.path]))
    result = CliRunner().invoke(app, ["track", "rebuild"], catch_exceptions=False)
    assert "2 points recorded in its study" in result.output
    assert record(lab)["points"].keys() == before["points"].keys()
