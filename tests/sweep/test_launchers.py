"""A launcher is a class with its config beside it and a line in the registry; nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest

from attnres_lab.runs.folder import RunFolder
from attnres_lab.sweep.launchers import REGISTRY
from attnres_lab.sweep.launchers.ray import Placed, RayLauncher
from attnres_lab.sweep.launchers.slurm import SlurmConfig, SlurmLauncher
from attnres_lab.sweep.schema import Resources
from tests.sweep.conftest import Lab

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", REGISTRY)
def test_a_launchers_config_names_it_and_the_guide_describes_it(name: str) -> None:
    hints = get_type_hints(REGISTRY[name].Config, include_extras=False)
    assert get_args(hints["name"]) == (name,)
    assert f"- `{name}`: " in (ROOT / "docs" / "sweeps.md").read_text()


FOURTH = """
import json, sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from attnres_lab.errors import UserError
from attnres_lab.sweep import launchers
from attnres_lab.sweep.launchers.base import Count, Ended, Launcher, LauncherConfig
from attnres_lab.sweep.process import execute

@dataclass(frozen=True)
class InTurnConfig(LauncherConfig):
    name: Literal["inturn"]
    patience: Count = 1
    workers: Count = 1

class InTurn(Launcher):
    Config = InTurnConfig
    here = True
    def __init__(self, config, resources, function, folder):
        self.slots, self.function, self.ended = config.workers, function, []
    def start(self, folder):
        self.ended.append(Ended(folder.name, execute(folder, self.function)))
    def wait(self, seconds):
        ended, self.ended = self.ended, []
        return ended
    def end(self, hash, *, kill): pass
    def close(self): pass

launchers.REGISTRY["inturn"] = InTurn

from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep import engine
from attnres_lab.sweep.spec import json_schema, load_spec
from tests.sweep.conftest import _no_mirror

engine.SweepMirror = _no_mirror
said = []
for path in sys.argv[3:]:
    try:
        load_spec(path)
    except UserError as error:
        said.append(str(error).removeprefix(path))
done = engine.run_sweep(load_spec(sys.argv[1]), SweepFolder(Path(sys.argv[2]))).done
print(json.dumps({"schema": json_schema(), "said": said, "done": done}))
"""


def test_a_fourth_launcher_is_one_line(lab: Lab) -> None:
    """It runs a sweep; schema and messages know it and its options."""
    texts = ["{name: inturm}", "{name: inturn, patiense: 2}", "{name: inturn, workers: 0}"]
    paths = [lab.sweep(launcher={"name": "inturn"})]
    for index, text in enumerate(texts):
        path = lab.path / f"bad{index}.yaml"
        head = "name: s\nbase: base.yaml\nspace: {seed: [0]}\n"
        path.write_text(f"{head}launcher: {text}\n")
        paths.append(path)
    paths.insert(1, lab.folder.path)
    found = subprocess.run(
        [sys.executable, "-c", FOURTH, *map(str, paths)],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    answer = json.loads(found.stdout.splitlines()[-1])
    assert answer["done"] == 4
    assert "patience" in answer["schema"]["$defs"]["InTurnConfig"]["properties"]
    assert answer["said"] == [
        ":4: launcher: no launcher is called 'inturm', did you mean 'inturn'?",
        ":4: launcher.patiense: unknown key, did you mean 'patience'?",
        ":4: launcher.workers: should be greater than or equal to 1, got 0",
    ]


def test_a_coordinator_of_ray_tasks_sleeps_while_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("attnres_lab.sweep.launchers.ray.time.sleep", slept.append)
    launcher = object.__new__(RayLauncher)
    launcher.running = {}
    assert launcher.wait(0.05) == []
    assert slept == [0.05]


@pytest.mark.parametrize("setup", ["echo loaded; echo no module >&2", "echo loaded\nexit 3"])
def test_what_the_setup_of_a_slurm_job_says_is_in_the_trial_s_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setup: str
) -> None:
    """The batch script run by bash, as the second task of an array."""
    monkeypatch.setattr("attnres_lab.sweep.launchers.slurm.sys.executable", "/bin/echo")
    launcher = object.__new__(SlurmLauncher)
    launcher.config = SlurmConfig("slurm", setup=f"#SBATCH --mem=8G\n{setup}")
    launcher.resources, launcher.function = Resources(), "module:function"
    launcher.folder = tmp_path / "slurm"
    run = RunFolder(tmp_path / "a b")
    run.path.mkdir()
    (tmp_path / "1.txt").write_text(f"{tmp_path}/other\n{run.path}\n")
    script = launcher._script(tmp_path / "1", 2)
    subprocess.run(["bash", "-c", script], env={"SLURM_ARRAY_TASK_ID": "1"}, check=False)
    said = run.log.read_text().splitlines()
    trial = f"-m attnres_lab.sweep.process {run.path} module:function"
    assert said == (["loaded"] if "exit" in setup else ["loaded", "no module", trial])
    options = [line.startswith("#") for line in script.splitlines()]
    assert "#SBATCH --mem=8G" in script.splitlines()[: options.index(False)]


def test_a_ray_task_that_has_ended_is_never_cancelled() -> None:
    """Its cancellation while Ray still completes it ends the coordinator's process ("Tried to
    complete task that was not pending"); other nodes' tasks end with their nodes' reservation.
    """
    called: list[object] = []
    launcher = object.__new__(RayLauncher)
    launcher.ray = SimpleNamespace(
        wait=lambda tasks, **_: (tasks, []),
        get=lambda task: 0,
        exceptions=None,
        cancel=lambda *_, **__: called.append("cancel"),
        util=SimpleNamespace(remove_placement_group=called.append),
    )
    launcher.running = {"a": Placed(["only"]), "b": Placed(["first", "second"], "its nodes")}
    assert [(ended.hash, ended.code) for ended in launcher.wait(0)] == [("a", 0), ("b", 0)]
    assert called == ["its nodes"]
    assert not launcher.running
