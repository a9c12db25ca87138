"""What a sweep shows in the store: a note, its result, a table, figures to explore, colours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from helpers import names_of_one_colour
from test_sweep_mirror import mirror_sweep
from tracking_helpers import OLD_LOADER, write_run, write_sweep

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import read_json, write_json
from attnres_lab.runs.looks import looks
from attnres_lab.runs.table import table
from attnres_lab.tracking import connect, figures, log_report, rebuild
from attnres_lab.tracking.artifacts import mirroring
from attnres_lab.tracking.note import ablation
from attnres_lab.tracking.sweep import SweepSync

NOTE = "mlflow.note.content"
pytestmark = pytest.mark.filterwarnings(OLD_LOADER)


def test_a_sweep_sorts_by_its_result(runs, tmp_path) -> None:
    """The parent has the lowest loss, and after a report its gains with limits; the note holds the
    verdict without the marks of a quotation.
    """
    home = runs / "sweeps" / "quick"
    for entry in write_sweep(home):
        result = home / "trials" / entry["hash"] / "result.json"
        loss = {"baseline": 3.5, "full": 3.25}[entry["variant"]]
        write_json(result, (read_json(result) or {}) | {"val/loss": loss})
    mirror_sweep(home, {})
    (tmp_path / "report.md").write_text("# quick\n\n> full is better.\n>\n> Conditions: 4 runs.\n")
    write_json(tmp_path / "gains.json", {"full": {"gain": 1.2, "low": 1.1, "high": 1.3}})
    log_report("quick", tmp_path)
    log_report("quick", tmp_path)  # what is there already is not written again
    (parent,) = connect().client.search_runs([connect().experiment_id], "tags.kind = 'sweep'")
    assert parent.data.metrics == {
        "val/loss": 3.25,
        "gain/best": 1.2,
        "gain/full": 1.2,
        "gain/full_low": 1.1,
        "gain/full_high": 1.3,
    }
    history = connect().client.get_metric_history(parent.info.run_id, "gain/full")
    assert len(history) == 1
    assert "**Verdict:** full is better. Conditions: 4 runs." in parent.data.tags[NOTE]


def test_runs_that_only_tune_are_no_result_of_the_sweep(runs) -> None:
    """As in the status of the sweep."""
    home = runs / "sweeps" / "quick"
    plan = write_sweep(home)
    plan[1]["tuning"] = plan[3]["tuning"] = True
    (home / "plan.json").write_text(json.dumps(plan))
    for entry in plan:
        result = home / "trials" / entry["hash"] / "result.json"
        write_json(
            result, (read_json(result) or {}) | {"val/loss": 2.0 if "tuning" in entry else 3.0}
        )
    mirror_sweep(home, {})
    (parent,) = connect().client.search_runs([connect().experiment_id], "tags.kind = 'sweep'")
    assert parent.data.metrics == {"val/loss": 3.0}
    assert re.search(r"^d32-L8 +full +1 +3\.0000 +\+0\.0000$", parent.data.tags[NOTE], re.M)


def test_the_table_of_the_note_takes_means_over_seeds_and_over_nothing_else() -> None:
    def trial(point: str, loss: float, state: str = "finished", **more: bool) -> dict:
        labels = {"size": "s", "variant": "full", "point": point, "state": state}
        return labels | {"result": {"val/loss": loss}} | more

    finished = [trial("a", 2.0), trial("a", 4.0)]
    others = [trial("a", 9.0, "pruned"), trial("b", 9.0, "diverged"), trial("b", 9.0, tuning=True)]
    assert re.search(r"^s +full +2 +3\.0000$", "\n".join(ablation(finished + others)), re.M)
    assert "```" not in "\n".join(ablation([*finished, trial("b", 3.0)]))


def test_a_report_on_a_sweep_that_is_running_is_taken_along_by_its_mirror(runs, tmp_path) -> None:
    """Nobody waits until the sweep has ended; of a report elsewhere it is said."""
    home, client = runs / "sweeps" / "quick", connect().client
    write_sweep(home, done=2)
    with mirroring(home):
        sweep = SweepSync(connect(), home, "quick", {})
        while not sweep.sync():
            pass
        for text in ("> level so far.", "> full is better."):
            for folder in (home / "report", tmp_path):
                folder.mkdir(exist_ok=True)
                (folder / "report.md").write_text(f"# quick\n\n{text}\n")
                (folder / "report.html").write_text(text)
            log_report("quick", home / "report")
            with pytest.raises(UserError, match="the sweep is running, and sends the report in"):
                log_report("quick", tmp_path)
            sweep.sync()
            (parent,) = client.search_runs([connect().experiment_id], "tags.kind = 'sweep'")
            assert f"**Verdict:** {text[2:]}" in parent.data.tags[NOTE]
    sent = client.download_artifacts(parent.info.run_id, "report/report.html")
    assert Path(sent).read_text() == "> full is better."


def test_a_rebuild_leaves_what_is_running_to_its_mirror(runs, capsys) -> None:
    home, alone = runs / "sweeps" / "quick", runs / "train" / "one"
    write_sweep(home)
    write_run(alone)
    with mirroring(home), mirroring(alone):
        assert list(rebuild(runs)) == [home, alone]
    lines = [line for line in capsys.readouterr().err.splitlines() if "left to the mirror" in line]
    assert lines == [
        f"tracking: {path}: left to the mirror of what is running there" for path in (home, alone)
    ]
    assert connect().client.search_runs([connect().experiment_id]) == []


def test_two_variants_of_one_hash_have_two_colours(runs) -> None:
    """In MLflow as in the figures."""
    name, twin = names_of_one_colour()
    write_sweep(runs / "quick", variants=(name, twin), seeds=(0,), done=0)
    mirror_sweep(runs / "quick", {})
    children = connect().client.search_runs([connect().experiment_id], "tags.kind = 'run'")
    colors = {run.data.tags["variant"]: run.data.tags["mlflow.runColor"] for run in children}
    assert colors == {key: looks([name, twin])[key].color for key in (name, twin)}
    assert len(set(colors.values())) == 2


def test_the_figures_to_explore_tell_sizes_apart(runs) -> None:
    """The larger, the wider; a menu leaves one size."""
    files = []
    for size, params in (("d16-L8", 100), ("d32-L8", 400), ("d64-L8", 1600)):
        for variant in ("baseline", "full"):
            made = write_run(runs / f"{variant}{size}", variant=variant)
            facts = read_json(made.environment) | {"size": size}
            write_json(made.environment, facts)
            write_json(made.result, read_json(made.result) | {"params": params})
            files.append(made)
    paths = [made.path for made in files]
    records = table(paths)
    figure = figures._curves(list(zip(records, files, strict=True)), "three sizes")
    widths: dict[str, set[float]] = {}
    for line in figure.data:
        widths.setdefault(line.name.split()[1], set()).add(line.line.width)
    ordered = [widths[size] for size in ("d16-L8", "d32-L8", "d64-L8")]
    assert all(len(width) == 1 for width in ordered)
    assert [width.pop() for width in ordered] == [1.0, 2.5, 4.0]
    menu = next(m for m in figure.layout.updatemenus if m.type == "dropdown")
    assert [button.label for button in menu.buttons] == ["all sizes", "d16-L8", "d32-L8", "d64-L8"]
    mask = menu.buttons[2].args[0]["visible"]
    shown = {line.name.split()[1] for line, seen in zip(figure.data, mask, strict=True) if seen}
    assert shown == {"d32-L8"}


def test_a_sweep_has_its_table_and_its_figures(runs, tmp_path) -> None:
    """A line per trial, and a page with the curves and depth attention that asks no network for
    anything.
    """
    write_sweep(runs / "quick", variants=("baseline", "full", "block8"))
    mirror_sweep(runs / "quick", {})
    store = connect()
    (parent,) = store.client.search_runs([store.experiment_id], "tags.kind = 'sweep'")
    table = pd.read_csv(
        store.client.download_artifacts(parent.info.run_id, "trials.csv", str(tmp_path))
    )
    assert sorted(table["variant"]) == ["baseline", "baseline", "block8", "block8", "full", "full"]
    page = Path(
        store.client.download_artifacts(parent.info.run_id, "figures.html", str(tmp_path))
    ).read_text()
    assert page.count("Plotly.newPlot(") >= 3
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", page)
