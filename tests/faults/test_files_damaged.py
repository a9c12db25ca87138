"""Every file of a sweep and of its trials, damaged in six ways, met by every command: no traceback,
the file is named, and no number, no point of the study and no run in the store is another.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.faults.states import difference, sweep_state
from tests.faults.stores import store_state
from tests.faults.test_damage import WAYS, damage
from tests.faults.test_store_damage import Home, home

__all__ = ["home"]

#: Those that look, then those that mend.
COMMANDS = (
    *("runs list", "sweep list", "sweep status FILE", "sweep plan FILE", "sweep export FILE"),
    *("sweep run FILE", "report FILE", "track rebuild"),
)
TRIAL = (
    *("config.yaml", "environment.json", "status.json", "result.json", "metrics.jsonl"),
    *("checkpoints/last.ckpt", "tracking.json", "artifacts/data.json", "artifacts/depth/*.json"),
)
SWEEP = ("sweep.json", "plan.json", "study.journal", "tracking.json", "report/gains.json")
NAMES = (*(f"trials/*/{name}" for name in TRIAL), *SWEEP, "speed.json")
#: One of each way in the default suite.
DEFAULT = {
    *(("trials/*/result.json", "a bit"), ("trials/*/status.json", "garbage")),
    *(("trials/*/environment.json", "another type"), ("trials/*/tracking.json", "half")),
    *(("sweep.json", "empty"), ("trials/*/metrics.jsonl", "gone")),
}
#: Written once, by training, and by nothing else again: what is damaged stays away, or as it is.
ONCE = ("config.yaml", "environment.json", "metrics.jsonl", "last.ckpt", "data.json")


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=[pytest.mark.exhaustive] * ((name, way) not in DEFAULT))
        for name in NAMES
        for way in WAYS
    ],
)
def test_a_damaged_file_costs_itself_at_most(home: Home, name: str, way: str) -> None:
    whole = sweep_state(home.runs.parent / "copy")
    shutil.rmtree(home.runs)
    shutil.copytree(home.runs.parent / "copy", home.runs)
    file = found(home.runs, name)
    damage(file, way)
    story = ""
    for words in COMMANDS:
        said = [str(home.file) if word == "FILE" else word for word in words.split()]
        ended = home.process.call("tests.faults.targets:command", home.runs, *said)
        story += f"{words}: exit code {ended.code}\n{ended.output}"
        assert ended.code == 0, story
    assert "Traceback" not in story, story
    left = sweep_state(home.runs)
    wrong = difference(*(of_trials(state, file) for state in (left, whole)))
    assert not wrong, f"{story}\n{wrong}"
    store = store_state(home.runs)
    assert not (wrong := difference(numbers(store), numbers(home.calm))), f"{story}\n{wrong}"


def found(runs: Path, name: str) -> Path:
    """The first file of that name, which is there."""
    if name == "speed.json":
        return runs.with_name(f"cache-of-{runs.name}") / name
    return min((runs / "sweeps" / "s").glob(name))


def of_trials(state: dict[str, Any], damaged: Path) -> dict[str, Any]:
    """The study and the files of the trials, less what was set aside; of a file that nothing writes
    again only where it is another's.
    """
    return {
        name: value
        for name, value in state.items()
        if name.startswith(("study", "plan.json", "trials/"))
        and ".damaged-" not in name
        and not (damaged.name in ONCE and str(damaged).endswith(name))
    }


def numbers(store: dict[str, Any]) -> dict[str, Any]:
    """By run: its end, and its points but those of clocks, which a result that is made again has
    anew.
    """
    return {
        key: {"status": run["status"], "points": [p for p in run["points"] if len(p) > 2]}
        for key, run in store.items()
    }
