"""A sweep is a parent run with its trials below it, and can be written again from its folders."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from tracking_helpers import OLD_LOADER, dump, wait_for, write_run, write_sweep

from attnres_lab.analysis import load_runs
from attnres_lab.runs.folder import RunFolder, read_json, write_json
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.tracking import SweepMirror, connect, log_report, rebuild, tracking_uri
from attnres_lab.tracking.sweep import SweepSync

pytestmark = pytest.mark.filterwarnings(OLD_LOADER)


def mirror_sweep(home, summary) -> None:
    """In this process, which saves seconds."""
    sweep = SweepSync(connect(), home, home.name, summary)
    while not sweep.sync():
        pass
    sweep.close()


def test_a_sweep_is_a_parent_with_children_on_one_level(runs) -> None:
    """Tags on every child, planned trials as scheduled, a table in the note; a second sweep of the
    same name stays apart.
    """
    for home in (runs / "sweeps" / "quick", runs / "other" / "quick"):
        write_sweep(home, done=3)
        mirror_sweep(home, {"Question": "Does depth attention pay?"})
    client = connect().client
    parents = client.search_runs([connect().experiment_id], "tags.kind = 'sweep'")
    assert len({parent.data.tags["sweep_id"] for parent in parents}) == 2
    for parent in parents:
        note = parent.data.tags["mlflow.note.content"]
        assert "3 of 4 trials have a result (3 finished, 1 scheduled)" in note
        assert re.search(r"^d32-L8 +full +1 +3\.0000 +\+0\.0000$", note, re.M)
        assert "Does depth attention pay?" in note
        children = client.search_runs(
            [connect().experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
        )
        assert sorted(child.info.run_name for child in children) == sorted(
            f"{v}-d32-L8-s{s}" for v in ("baseline", "full") for s in (0, 1)
        )
        assert [child.info.run_name for child in children if child.info.status == "SCHEDULED"] == [
            "full-d32-L8-s1"
        ]
        for child in children:
            assert (child.data.params["size"], child.data.tags["protocol"]) == ("small", "shared")
            assert {
                "kind",
                "sweep",
                "sweep_id",
                "variant",
                "size",
                "seed",
                "status",
                "protocol",
                "trial",
            } <= set(child.data.tags)
            assert child.data.params["model.residual.name"] == child.data.tags["variant"]


def test_rebuild_gives_the_same_store(runs, tmp_path, monkeypatch, empty_store) -> None:
    """A lost store comes back from the folders, row for row; rebuilding what is there changes
    nothing.
    """
    write_sweep(runs / "sweeps" / "quick")
    mirror_sweep(runs / "sweeps" / "quick", {})
    write_run(runs / "train" / "tiny", variant="block8")
    list(rebuild(runs / "train"))
    before = dump(tracking_uri())
    assert len(before) == 6
    assert len(list(rebuild(runs))) == 2
    assert dump(tracking_uri()) == before
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'new.db'}")
    (tmp_path / "new.db").write_bytes(empty_store.read_bytes())
    list(rebuild(runs))
    assert dump(tracking_uri()) == before


def test_a_run_that_is_no_part_of_the_plan_any_more_is_tagged_and_read_by_nobody(runs) -> None:
    """Of one that never began nothing is left; what comes back is a result again."""
    home = runs / "sweeps" / "quick"
    plan = write_sweep(home, done=3)
    mirror_sweep(home, {})
    client, ids = connect().client, [connect().experiment_id]
    (home / "plan.json").write_text(json.dumps([plan[0], plan[2]]))
    mirror_sweep(home, {})
    (stale,) = client.search_runs(ids, "tags.stale = 'true'")
    assert stale.data.tags["trial"] == plan[1]["hash"]
    assert client.search_runs(ids, f"tags.trial = '{plan[3]['hash']}'") == []
    for name in ("quick", "attnres"):
        assert set(load_runs(name, tracking_uri())["trial"]) == {plan[0]["hash"], plan[2]["hash"]}
    (home / "plan.json").write_text(json.dumps(plan))
    mirror_sweep(home, {})
    assert client.search_runs(ids, "tags.stale = 'true'") == []
    assert set(load_runs("quick", tracking_uri())["trial"]) == {entry["hash"] for entry in plan}


@pytest.mark.parametrize("lost", ["sweep.json", "tracking.json"])
def test_what_lost_its_description_is_not_there_twice(runs, lost) -> None:
    """A sweep, and a single run, whose id training drew: either of the two files that know it may
    be lost.
    """
    home, alone = runs / "sweeps" / "quick", runs / "train" / "tiny"
    write_sweep(home)
    files = write_run(alone, variant="block8")
    write_json(files.environment, (read_json(files.environment) or {}) | {"id": "drawn"})
    list(rebuild(runs))
    before = dump(tracking_uri())
    for path in [*runs.rglob(lost)] + [files.environment] * (lost == "sweep.json"):
        path.unlink()
    SweepFolder(home).describe("quick", "base.yaml", "")  # as the next start of the sweep does
    list(rebuild(runs))
    after = dump(tracking_uri())  # which refuses a run that is there twice
    assert {name: run["points"] for name, run in after.items()} == {
        name: run["points"] for name, run in before.items()
    }


@pytest.mark.slow
def test_a_sweep_is_mirrored_while_it_runs(runs) -> None:
    """By a process of its own; what was planned arrives before it has run, and a second start
    doubles nothing.
    """
    home = runs / "quick"
    plan = write_sweep(home, done=0)
    with SweepMirror("quick", home, {"Plan": "four trials"}):
        wait_for(
            lambda: [run["status"] for run in dump(tracking_uri()).values()].count("SCHEDULED") == 4
        )
        for entry in plan:
            write_run(home / "trials" / entry["hash"], variant=entry["variant"], seed=entry["seed"])
    store = dump(tracking_uri())
    assert {run["status"] for run in store.values()} == {"FINISHED"}
    assert "**Plan:** four trials" in store["quick"]["tags"]["mlflow.note.content"]
    mirror_sweep(home, {"Plan": "four trials"})
    assert dump(tracking_uri()) == store


def test_a_planned_trial_gets_its_own_start_once_it_has_begun(runs) -> None:
    """The run that stood for the plan makes way; there is one run a trial at any time."""
    home = runs / "quick"
    plan = write_sweep(home, variants=("full",), seeds=(0,), done=0)
    sweep = SweepSync(connect(), home, "quick", {})
    sweep.sync()
    client, experiment = connect().client, connect().experiment_id
    (waiting,) = client.search_runs([experiment], "tags.kind = 'run'")
    assert waiting.info.status == "SCHEDULED"
    files = write_run(home / "trials" / plan[0]["hash"], state="running")
    write_json(files.environment, read_json(files.environment) | {"started": 1.7e9})
    sweep.sync()
    files.set_status("finished", step=50)
    status = read_json(files.path / "status.json")
    write_json(files.path / "status.json", status | {"updated": 1.7e9 + 60})
    sweep.sync()
    sweep.close()
    (run,) = client.search_runs([experiment], "tags.kind = 'run'")
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_000, 1_700_000_060_000)
    assert run.info.status == "FINISHED"
    assert run.data.params["size"] == "small"
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 5
    (parent,) = client.search_runs([experiment], "tags.kind = 'sweep'")
    assert parent.info.end_time == 1_700_000_060_000


def test_a_plan_that_varies_the_batch_has_it_as_a_factor(runs) -> None:
    plan = write_sweep(runs / "quick", variants=("full",), seeds=(0,), done=0)
    plan[0]["params"]["train.batch_size"] = 8
    (runs / "quick" / "plan.json").write_text(json.dumps(plan))
    files = write_run(runs / "quick" / "trials" / plan[0]["hash"])
    environment = read_json(files.environment)
    environment["config"]["train.batch_size"] = 8
    write_json(files.environment, environment)
    mirror_sweep(runs / "quick", {})
    (run,) = connect().client.search_runs([connect().experiment_id], "tags.kind = 'run'")
    assert run.data.metrics["factor/train.batch_size"] == 8


def test_a_finished_sweep_that_is_mirrored_again_costs_two_calls(runs, monkeypatch) -> None:
    """However many trials it has; a trial that ended since is sent, and so is a lost run."""
    home = runs / "quick"
    plan = write_sweep(home, done=3)
    mirror_sweep(home, {})
    calls: list[str] = []
    store = connect()

    class Counting:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(store.client, name)

    def again() -> int:
        calls.clear()
        counted = type(store)(Counting(), store.experiment_id, store.label)
        sweep = SweepSync(counted, home, "quick", {})
        while not sweep.sync():
            pass
        sweep.close()
        return len(calls)

    assert again() > 2  # a trial is still to run
    write_run(home / "trials" / plan[3]["hash"], variant="full", seed=1)
    assert again() > 2
    assert again() <= 2
    assert {run["status"] for run in dump(tracking_uri()).values()} == {"FINISHED"}


MIRROR = """
import sys
from attnres_lab.tracking.worker import main
main()
print("mlflow" in sys.modules)
"""


def test_the_mirror_of_a_finished_sweep_does_not_even_import_mlflow(runs, monkeypatch) -> None:
    """Which takes seconds: it reads a tag from the embedded store, after a report too. Where a run
    is missing there, or the experiment is another one, everything is sent.
    """
    home = runs / "sweeps" / "quick"
    plan = write_sweep(home)
    mirror_sweep(home, {"Plan": "four trials"})
    (home / "report").mkdir()
    (home / "report" / "report.md").write_text("# It\n\nA verdict.\n")
    log_report("quick", home / "report")
    task = {"kind": "sweep", "folder": str(home), "name": "quick", "grace": 30.0}
    task["summary"] = {"Plan": "four trials"}

    def imports_mlflow() -> bool:
        words = [sys.executable, "-c", MIRROR]
        text = json.dumps(task) + "\n"
        done = subprocess.run(words, input=text, capture_output=True, text=True, check=True)
        return done.stdout == "True\n"

    before = dump(tracking_uri())
    assert not imports_mlflow()
    RunFolder(home / "trials" / plan[3]["hash"]).set_status("finished", step=50)
    assert imports_mlflow()
    assert not imports_mlflow()
    assert dump(tracking_uri()) == before
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert imports_mlflow()


def test_a_broken_folder_does_not_hold_up_the_others(runs, capsys) -> None:
    """It is named; its own rows are all it costs."""
    write_sweep(runs / "quick")
    (runs / "quick" / "trials" / "full0" / "metrics.jsonl").write_text("{broken\n")
    mirror_sweep(runs / "quick", {})
    assert [run["status"] for run in dump(tracking_uri()).values()].count("FINISHED") == 5
    assert "metrics.jsonl: damaged rows are left out" in capsys.readouterr().err


def test_a_plan_is_kept_of_trials_that_were_never_seen_waiting(runs) -> None:
    """What only the plan says, a label of a bundle, is a parameter of every trial, whether or not
    the mirror saw it before it began.
    """
    plan = write_sweep(runs / "quick", done=0)
    sweep = SweepSync(connect(), runs / "quick", "quick", {})
    write_run(runs / "quick" / "trials" / "full0", variant="full")
    sweep.sync()
    for entry in plan:
        write_run(
            runs / "quick" / "trials" / entry["hash"], variant=entry["variant"], seed=entry["seed"]
        )
    mirror_sweep(runs / "quick", {})
    assert [
        run["params"].get("size") for name, run in dump(tracking_uri()).items() if name != "quick"
    ] == ["small"] * 4


def test_a_creation_that_was_answered_too_late_leaves_no_double(runs) -> None:
    """A stalled server creates the run for which the mirror no longer waits; the run that was
    filled stays.
    """
    write_sweep(runs / "quick")
    mirror_sweep(runs / "quick", {})
    before, store = dump(tracking_uri()), connect()
    for run in store.client.search_runs([store.experiment_id]):
        tags = {key: run.data.tags[key] for key in ("attnres.id", "sweep_id", "kind")}
        store.client.create_run(store.experiment_id, tags=tags, run_name=run.info.run_name)
    mirror_sweep(runs / "quick", {})
    assert dump(tracking_uri()) == before


def test_the_address_of_a_database_in_a_sweep_file_stays_here(runs, tmp_path) -> None:
    """The sweep's YAML is uploaded without the password that is in it."""
    write_sweep(runs / "quick")
    write_json(
        runs / "quick" / "sweep.json",
        {"name": "quick", "id": "1", "yaml": "storage: postgresql://lab:canary@host/db\n"},
    )
    mirror_sweep(runs / "quick", {})
    assert not [
        path
        for path in (runs / "artifacts").rglob("*")
        if path.is_file() and b"canary" in path.read_bytes()
    ]
