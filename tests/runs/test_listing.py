"""What is a run and what of it is known: damaged and converted ones are in the list too."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.runs.folder import RunFolder
from attnres_lab.runs.table import find, locate, table


@pytest.mark.parametrize("content", ["{", "[1]", '{"state": "asleep"}'])
def test_a_run_whose_status_is_damaged_stays_in_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """At the first look, which sets the status aside, and at each one after; found by its name; and
    as before once a status is written.
    """
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    for name in ("whole", "damaged"):
        (tmp_path / "train" / name).mkdir(parents=True)
        RunFolder(tmp_path / "train" / name).set_status("finished", step=7)
    files = RunFolder(tmp_path / "train" / "damaged")
    (files.path / "status.json").write_text(content)
    for _ in range(2):
        states = {record["run"]: record["state"] for record in table(find())}
        assert states == {"train/whole": "finished", "train/damaged": "damaged"}
    assert (files.path / "status.json.damaged-1").exists()
    assert locate("damaged") == files.path
    shown = CliRunner().invoke(app, ["runs", "list"], catch_exceptions=False).output
    assert [line.split()[:2] for line in shown.splitlines() if "damaged" in line] == [
        ["train/damaged", "damaged"]
    ]
    files.set_status("running")
    assert {record["state"] for record in table(find())} == {"finished", "running"}
