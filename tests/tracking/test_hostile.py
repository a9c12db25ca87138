"""Folders are data: what is in them leads to no other file, and is shown as text."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
from helpers import tiny
from tracking_helpers import OLD_LOADER, dump, write_run, write_sweep

from analysis.report.page import Page
from attnres_lab.config import load
from attnres_lab.runs.folder import RunFolder, write_json
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.runs.table import table
from attnres_lab.tracking import log_report, rebuild, tracking_uri
from attnres_lab.tracking.note import markdown
from attnres_lab.training.run import run as train

pytestmark = pytest.mark.filterwarnings(OLD_LOADER)


def holding(folder: Path, text: bytes) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and text in p.read_bytes()]


def test_a_link_out_of_the_folder_is_not_uploaded(runs, tmp_path) -> None:
    """Neither as an artifact, nor as a log or a config, nor in a report, nor a whole folder."""
    outside = tmp_path / "outside"
    (outside / "depth").mkdir(parents=True)
    for name in ("secret.txt", "depth/secret.json"):
        (outside / name).write_text("canary")
    home = runs / "sweeps" / "quick"
    plan = write_sweep(home)
    files = SweepFolder(home).trial(plan[0]["hash"])
    (files.artifacts / "picture.txt").symlink_to(outside / "secret.txt")
    (files.artifacts / "more").symlink_to(outside)
    files.log.symlink_to(outside / "secret.txt")
    files.config.unlink()
    files.config.symlink_to(outside / "secret.txt")
    other = SweepFolder(home).trial(plan[1]["hash"]).path
    other.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "log.txt").write_text("canary")
    other.symlink_to(tmp_path / "elsewhere")
    report = home / "report"
    report.mkdir()
    (report / "report.md").write_text("# It\n\nA verdict.\n")
    (report / "figure.png").symlink_to(outside / "secret.txt")
    list(rebuild(runs))
    log_report("quick", report)
    assert len(dump(tracking_uri())) == 5
    assert not holding(runs / "artifacts", b"canary")
    assert [path.name for path in (runs / "artifacts").rglob("report.md")] == ["report.md"]


def test_secrets_of_a_run_stay_in_the_file_that_training_reads(runs, tmp_path, monkeypatch) -> None:
    """A logger's key and address, with odd characters, and a variable's value in the log: not in
    the store, its artifacts, or a table. The file that has them is for its owner's eyes.
    """
    secrets = {"api_key": "can'qzx7", "uri": "https://me:can/qzx7@host"}
    config = tiny(tmp_path, loggers=[{"name": "tracking_helpers.Quiet", **secrets}])
    files = RunFolder(runs / "train" / "one")
    train(config, files.path)
    monkeypatch.setenv("HF_TOKEN", 'can"ary qzx7')
    files.log.write_text('it said: can"ary qzx7\n')
    list(rebuild(runs))
    assert load(files.config) == config
    assert stat.S_IMODE(files.config.stat().st_mode) == 0o600
    # a diff of these very lines apart
    held = {p.relative_to(files.path).as_posix() for p in holding(files.path, b"qzx7")}
    assert held - {"artifacts/code.diff"} == {"config.yaml", "log.txt"}
    assert {p.name for p in holding(runs / "artifacts", b"qzx7")} <= {"code.diff"}
    assert b"qzx7" not in (runs / "mlflow.db").read_bytes()
    names = {path.name for path in (runs / "artifacts").rglob("*")}
    assert {"config.yaml", "log.txt", "environment.json"} <= names
    assert "qzx7" not in str(table([files.path]))


@pytest.mark.parametrize("hash", ["/abs/olute", "../../out", "..", "a/../../b", ""])
def test_a_hash_that_leads_out_of_the_trials_is_refused(tmp_path, hash, capsys) -> None:
    """The others of the plan are kept."""
    plan = write_sweep(tmp_path / "quick", done=0)
    plan[0]["hash"] = hash
    (tmp_path / "quick" / "plan.json").write_text(json.dumps(plan))
    entries = SweepFolder(tmp_path / "quick").plan()
    assert [entry.hash for entry in entries] == [entry["hash"] for entry in plan[1:]]
    assert "plan.json" in capsys.readouterr().err


NAMES = ("![x](/etc/passwd)", "<script>alert(1)</script>", "a|b", "[x](javascript:alert(1))", "`x`")


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(tmp_path, name) -> None:
    """In the note of a sweep and on the page of a report: no picture, no script, no column more."""
    from markdown_it import MarkdownIt

    trial = {"variant": name, "size": name, "seed": 0, "state": "finished"}
    note = markdown(name, {name: name}, [trial | {"result": {"val/loss": 1.0}}])
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(note)
    assert not [tag for tag in ("<img", "<script", "<a ") if tag in html]
    (table,) = re.findall("<pre><code>(.*?)</code></pre>", html, re.S)
    assert html.count("<code") == 1
    assert len(table.strip().splitlines()) == 3
    page = Page(tmp_path)
    page.add(f"# {name}", f"Of {name} nothing is known.")
    assert not [tag for tag in ("<img", "<script") if tag in page.html(name)]


def test_figures_show_names_as_they_are(runs) -> None:
    """Plotly takes a part of HTML in its texts."""
    from attnres_lab.tracking.figures import page

    name = "</script><script>canary()</script><b>x"
    files = write_run(runs / "odd", variant="full")
    value = json.loads(files.environment.read_text())
    write_json(files.environment, value | {"variant": name})
    text = page(name, table([files.path]), [files.path])
    assert "<script>canary" not in text
    assert "<b>x" not in text.replace("\\u003c", "<")
