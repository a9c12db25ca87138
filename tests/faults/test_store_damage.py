"""The embedded store damaged in six ways, met by every command that may open it: no traceback, the
store is named and set aside, and a rebuild gives what was in it.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import write_run

from tests.faults.injector import Ended, Injector, Warm
from tests.faults.states import difference
from tests.faults.stores import DAMAGES, provide, store_state
from tests.faults.test_run_faults import TINY

COMMANDS = {
    "rebuild": ("track", "rebuild"),
    "run": ("sweep", "run", "FILE"),
    "report": ("report", "FILE"),
    "ui": ("ui", "--port", "5000"),
    "list": ("runs", "list"),
}


def another(path: Path) -> None:
    """A whole database, of something else."""
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE runs_of_the_bakery (day TEXT, loaves INTEGER)")


WAYS = DAMAGES | {"another": another}
#: One of each in the default suite.
DEFAULT = {
    *(("half", "rebuild"), ("empty", "run"), ("gone", "list"), ("garbage", "report")),
    *(("another", "ui"), ("a bit", "rebuild")),
}


@dataclass
class Home:
    """A sweep that was run, reported and mirrored, with a copy of all its files."""

    runs: Path
    file: Path
    process: Warm
    calm: dict[str, Any]

    def command(self, name: str) -> Ended:
        words = [str(self.file) if word == "FILE" else word for word in COMMANDS[name]]
        return self.process.call("tests.faults.targets:command", self.runs, *words)


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory,
    mlflow_process: tuple[Injector, Warm],
    empty_store: Path,
) -> Home:
    folder = tmp_path_factory.mktemp("store-damage").resolve()
    write_run(folder / "tiny.yaml", **TINY)
    file = folder / "s.yaml"
    space = {"model.residual": ["baseline", "full"], "seed": [0]}
    spec = {"name": "s", "base": "tiny.yaml", "space": space, "launcher": {"workers": 1}}
    file.write_text(yaml.safe_dump(spec))
    made = Home(folder / "runs", file, mlflow_process[1], {})
    provide(empty_store, made.runs)
    for name in ("run", "report", "rebuild"):
        ended = made.command(name)
        assert ended.code == 0, ended.output
    made.calm = store_state(made.runs)
    shutil.copytree(made.runs, folder / "copy")
    return made


@pytest.mark.parametrize(
    ("way", "command"),
    [
        pytest.param(way, command, marks=[pytest.mark.exhaustive] * ((way, command) not in DEFAULT))
        for way in WAYS
        for command in COMMANDS
    ],
)
def test_a_damaged_store_costs_nothing(home: Home, way: str, command: str) -> None:
    shutil.rmtree(home.runs)
    shutil.copytree(home.runs.parent / "copy", home.runs)
    WAYS[way](home.runs / "mlflow.db")
    first = home.command(command)
    assert first.code == (2 if command == "ui" else 0), first.output  # the port is taken
    again = home.command("rebuild")
    assert again.code == 0, again.output
    story = first.output + again.output
    assert "Traceback" not in story, story
    aside = list(home.runs.glob("mlflow.db.damaged-*"))
    there = way not in ("empty", "gone")
    assert [path.name for path in aside] == ["mlflow.db.damaged-1"] * there, story
    assert story.count("damaged (") == story.count("set aside as mlflow.db.damaged-1") == there
    if command != "list" and way != "a bit":  # of which only who reads all of it is sure to know
        assert first.output.count("set aside") == there, first.output
    assert not (wrong := difference(store_state(home.runs), home.calm)), f"{story}\n{wrong}"


def test_a_database_that_the_user_named_is_not_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused: it may be anybody's."""
    from attnres_lab.errors import UserError
    from attnres_lab.tracking import connect

    path = tmp_path / "bakery.db"
    path.touch()
    another(path)
    before = path.read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    with pytest.raises(UserError, match=r"bakery\.db is a database of something else"):
        connect()
    assert path.read_bytes() == before
