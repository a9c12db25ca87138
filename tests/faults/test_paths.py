"""Folders of any name: training, sweeps, the store, its rebuild, the report and the pages work
there, or one line says why not before anything is trained.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from helpers import write_run

from attnres_lab.runs.paths import runs_folder
from tests.faults.injector import ROOT, Ended, Injector, Warm
from tests.faults.stores import provide, store_state
from tests.faults.test_run_faults import TINY

#: The hardest first, which is the one of the default suite.
NAMES = (
    "100% # a&b=c + größe 雪 'x' \"y\" ;$(z)",
    *("50%", "a%b", "a#b", "with space", "größe-雪", "a&b;c", "-x", "$HOME", "d" * 200),
)


def spec(folder: Path) -> Path:
    """A sweep of two runs beside the folder of runs."""
    write_run(folder / "tiny.yaml", **TINY)
    space = {"model.residual": ["baseline", "full"]}
    text = {"name": "s", "base": "tiny.yaml", "space": space, "launcher": {"workers": 1}}
    (folder / "s.yaml").write_text(yaml.safe_dump(text))
    return folder / "s.yaml"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.exhaustive] * (n != NAMES[0])) for n in NAMES]
)
def test_a_folder_of_any_name(
    name: str, tmp_path: Path, mlflow_process: tuple[Injector, Warm], empty_store: Path
) -> None:
    home = tmp_path.resolve() / name
    home.mkdir()
    file, runs = spec(home), home / name
    provide(empty_store, runs)

    def command(*words: str) -> Ended:
        ended = mlflow_process[1].call("tests.faults.targets:command", runs, *words)
        assert ended.code == 0, ended.output
        assert "Traceback" not in ended.output
        return ended

    command("train", str(home / "tiny.yaml"))
    command("sweep", "run", str(file))
    command("report", str(file))
    (run,) = (runs / "train").iterdir()
    assert str(run) in command("track", "rebuild").output
    state = store_state(runs)
    assert len(state) == 4
    assert all(entry["status"] == "FINISHED" for entry in state.values())
    assert "report/report.html" in state["s"]["files"]
    (alone,) = (entry for entry in state.values() if "sweep" not in entry["tags"])
    assert {"config.yaml", "environment.json"} <= set(alone["files"])
    lines = command("runs", "list").output.splitlines()
    assert len([line for line in lines if "finished" in line]) == 3


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("what?", "'?' in its name"),
        ("100%20", "'%20' in its name"),
        ("/".join(["d" * 120] * 5), "no path of this"),
    ],
)
def test_a_folder_that_no_store_can_lie_in_is_named_before_anything_is_trained(
    name: str, why: str, tmp_path: Path, mlflow_process: tuple[Injector, Warm]
) -> None:
    file = spec(tmp_path)
    runs = tmp_path.resolve() / name
    runs.parent.mkdir(parents=True, exist_ok=True)
    for words in (("train", tmp_path / "tiny.yaml"), ("sweep", "run", file), ("track", "rebuild")):
        ended = mlflow_process[1].call("tests.faults.targets:command", runs, *words)
        assert ended.code == 2, ended.output
        assert "Traceback" not in ended.output
        error = ended.output.replace("\n", "").rpartition("error: ")[2]
        assert why in error or "no runs here" in error, ended.output
        assert not list(runs.rglob("metrics.jsonl"))


@pytest.mark.infra
def test_the_pages_open_on_a_folder_of_any_name(
    tmp_path: Path,
    mlflow_process: tuple[Injector, Warm],
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The printed link leads to the experiment, whose run and artifact the server gives."""
    runs = tmp_path.resolve() / NAMES[0]
    write_run(tmp_path / "tiny.yaml", **TINY)
    provide(empty_store, runs)
    words = ("train", tmp_path / "tiny.yaml")
    ended = mlflow_process[1].call("tests.faults.targets:command", runs, *words)
    assert ended.code == 0, ended.output
    monkeypatch.setenv("ATTNRES_RUNS", str(runs))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with subprocess.Popen(
        [sys.executable, "-m", "attnres_lab", "ui"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as ui:
        assert ui.stdout
        try:
            address = ui.stdout.readline().strip()
            found = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/#/experiments/(\d+)/runs\?.*", address)
            assert found, address
            import mlflow

            client = mlflow.MlflowClient(found[1])
            (run,) = client.search_runs([found[2]])
            assert run.info.status == "FINISHED"
            query = f"path=config.yaml&run_uuid={run.info.run_id}"
            with urllib.request.urlopen(f"{found[1]}/get-artifact?{query}") as answer:
                assert b"model:" in answer.read()
        finally:
            with contextlib.suppress(ProcessLookupError):
                ui.send_signal(signal.SIGINT)
    assert runs_folder() == runs
