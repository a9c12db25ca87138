"""What a user sees of a sweep: while it runs, from another terminal, and as tables afterwards."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time

import pandas as pd
import pytest
from rich.console import Console

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import Status
from attnres_lab.runs.progress import Progress
from attnres_lab.runs.sweep import Entry
from attnres_lab.sweep.board import board
from attnres_lab.sweep.known import export
from attnres_lab.sweep.report import print_log, print_status
from attnres_lab.sweep.summary import goal_of, summary
from attnres_lab.sweep.summary import table as lines_of
from attnres_lab.sweep.view import Screen
from tests.sweep.conftest import Lab, in_process
from tests.sweep.services import wait_for
from tests.sweep.test_crash import CHAIN


def test_a_terminal_gets_a_live_table_and_a_file_plain_lines(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.01")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    lab.run(lab.sweep(space={"seed": [0, 1]}, **CHAIN))
    for run in (lab.folder.trial(hash) for hash in lab.states()):
        run.set_status("running")
        run.beat()
    with Screen(lab.folder, ("val/loss", "minimize"), 2) as screen:
        screen.tick()
    live = capsys.readouterr().out
    assert "\x1b[" in live
    assert "0/2 done, 2 running" in live
    assert "optim" not in live  # nothing varies but the seed
    monkeypatch.delenv("FORCE_COLOR")
    lab.run(lab.sweep(space={"seed": [2, 3]}, **CHAIN))
    plain = capsys.readouterr().out
    assert "\x1b" not in plain
    firsts = [line.split()[0] for line in plain.splitlines()]
    assert firsts[0] == "the", "the plan has changed"
    assert firsts[1:] == ["s:", "finished", "finished", "2/2", "best:", "next:"]
    assert "attnres report s; attnres ui" in plain


def test_status_from_another_terminal(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="nothing has run yet; start it with: attnres sweep run"):
        print_status(lab.folder, as_json=False, watch=False)
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.3")
    coordinator = in_process(lab.run, lab.sweep(**CHAIN))
    wait_for(lambda: sum(state == "running" for state in lab.states().values()) == 2)
    print_status(lab.folder, as_json=True, watch=False)
    now = json.loads(capsys.readouterr().out)
    assert (now["trials"][0]["state"], now["holder"]["pid"]) == ("running", coordinator.pid)
    assert now["running"] == 2
    print_status(lab.folder, as_json=False, watch=True)  # until done
    coordinator.join()
    assert "4/4 done" in capsys.readouterr().out.splitlines()[-2]


BEST = 1.0 + 1 / 32


def test_the_best_trial_and_the_failed_ones_stand_out_in_colour(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    lab.run(lab.sweep())
    out = capsys.readouterr().out
    best = [line for line in out.splitlines() if "best:" in line][-1]
    assert "optim.lr=0.003" in best
    assert f"val/loss {BEST:.4f}" in best
    assert out.count("\x1b[32mfinished") == 4  # green
    lab.run(lab.sweep(space={"seed": [2, 1]}, function="tests.sweep.synthetic:fails"))
    out = capsys.readouterr().out
    assert "\x1b[1;31mfailed" in out
    assert "go on: the same command" in out
    print_status(lab.folder, as_json=True, watch=False)
    assert json.loads(capsys.readouterr().out)["best"] is None


def test_the_last_words_on_a_terminal_are_not_those_of_an_older_board(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The board was drawn last while the better trial still ran."""
    lab.run(lab.sweep(space={"optim.lr": [1e-3, 3e-3]}))
    worse, better = (lab.folder.trial(entry.hash) for entry in lab.folder.plan())
    better.set_status("running")
    capsys.readouterr()
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Screen(lab.folder, ("val/loss", "minimize"), 2) as screen:
        screen.tick()
        screen.say("drawn")
        better.set_status("finished")
        screen.final()
    found = re.findall(r"best: (\w+)", capsys.readouterr().out)
    assert worse.path.name in found
    assert found[-1] == better.path.name


def test_the_objective_of_the_sweep_says_which_is_best(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = {"metric": "val/loss", "direction": "maximize"}
    lab.run(lab.sweep(objective=goal))
    capsys.readouterr()
    print_status(lab.folder, as_json=True, watch=False)
    best = json.loads(capsys.readouterr().out)["best"]
    assert best["params"]["optim.lr"] == 1e-3
    assert goal_of(lab.folder) == ("val/loss", "maximize")


@pytest.mark.parametrize("metric", ["val/loss", "eval/nano_shuffle/acc"])
def test_no_other_number_stands_under_the_name_of_a_metric(metric: str) -> None:
    """Of a trial that has not been validated or scored yet."""
    entry = Entry("0", "p", {}, "full", "d32-L4", 0, "full-d32-L4-s0", 1, 1.0, 1)
    trial = Progress(entry, Status("running"), {"step": 4, "train/loss": 2.5}, time.time())
    head, line = lines_of([trial], metric).split("\n")
    assert metric in head
    assert "2.5" not in line


@pytest.mark.parametrize("height", [8, 12, 40])
def test_a_board_fits_its_pane_with_what_runs_first(height: int) -> None:
    """Thirty trials, lines longer than the pane is wide: none is wrapped, none is below it."""
    params = {"optim.lr": 3e-3, "model.residual": "a long name of a variant"}
    entries = [
        Entry(f"{seed:012}", "p", params, "full", "d32-L4", seed, f"full-d32-L4-s{seed}", 1, 1.0, 1)
        for seed in range(30)
    ]
    states = {2: "running", 8: "running", 29: "running", 5: "failed", 20: "failed"}
    trials = [
        Progress(e, Status(states.get(e.seed, "finished"), "bug"), {"val/loss": 1.5}, time.time())  # type: ignore[arg-type]
        for e in entries
    ]
    console = Console(width=60, height=height, file=io.StringIO(), force_terminal=True)
    console.print(board(trials, summary(trials), "val/loss", height))
    out = re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue()).splitlines()  # type: ignore[attr-defined]
    assert len(out) < height
    assert max(map(len, out)) <= 60
    seen = [line.split()[2] for line in out[1 : min(6, height - 4)]]
    assert seen == ["running", "running", "running", "failed:", "failed:"][: len(seen)]
    assert "25/30 done, 3 running" in out[-1]
    assert (f"and {30 - (height - 5)} more" in "\n".join(out)) == (height < 35)


def test_a_trial_without_a_sign_of_life_is_called_silent(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.run(lab.sweep())
    lab.folder.trial(lab.folder.plan()[0].hash).set_status("running")
    (lab.folder.trial(lab.folder.plan()[0].hash).path / "heartbeat").unlink()
    print_status(lab.folder, as_json=False, watch=False)
    assert "1 silent" in capsys.readouterr().out


def test_a_log_is_found_by_the_beginning_of_a_hash(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.run(lab.sweep(space={"seed": [1]}, function="tests.sweep.synthetic:fails"))
    capsys.readouterr()
    with open(lab.folder.trial(hash := lab.folder.plan()[0].hash).log, "a") as log:
        log.write("no answer from postgresql://lab:canary@host/db\n")
    print_log(hash[:5])
    out = capsys.readouterr().out
    assert "ValueError: a bug" in out
    assert "no answer from postgresql://***@host/db" in out
    for prefix in ("zzz", "../x"):
        with pytest.raises(UserError, match="0 trials begin so"):
            print_log(prefix)


def test_an_export_holds_every_trial_with_its_parameters_and_numbers(lab: Lab) -> None:
    lab.run(
        lab.sweep(
            space={
                "optim.lr": [1e-3, 3e-3],
                "model.residual": [{"name": "baseline"}, {"name": "block", "num_blocks": [1, 2]}],
            }
        )
    )
    csv, parquet, text = export(lab.folder, lab.path / "out")
    for table in (pd.read_csv(csv), pd.read_parquet(parquet), pd.read_json(text)):
        assert set(table["trial"]) == set(lab.states())
        assert set(table["status"]) == {"finished"}
        best = table[table["optim.lr"] == 3e-3]["val/loss"].max()
        assert best == pytest.approx(1.0 + 1 / 32)
        assert table["model.residual.num_blocks"].notna().sum() == 4


OTHER = """
import os, sys
from attnres_lab.cli import main

def command(*words):
    sys.argv = ["attnres", "sweep", words[0], "s", *words[1:]]
    try:
        main()
    except SystemExit as end:
        print(f"exit code {end.code or 0}", flush=True)

out = sys.argv[1]
for words in (["status"], ["export", "--to", out]):  # imports, which may be root's alone to read
    command(*words)
os.getuid() or os.setuid(65534)  # root may write anywhere
print("as another", flush=True)
for words in (["status"], ["stop"], ["export"], ["export", "--to", out + "/own"]):
    command(*words)
"""


def test_a_user_who_may_only_look_sees_the_truth_of_every_command(lab: Lab) -> None:
    """While a coordinator of somebody else's holds the sweep."""
    lab.run(lab.sweep())
    (out := lab.path / "out").mkdir()
    for parent in (lab.path, *lab.path.parents):
        if parent.name.startswith(("pytest", "popen", "test_")):
            parent.chmod(0o755)
    out.chmod(0o777)
    with lab.folder.coordinate():
        folders = [path for path in lab.folder.path.rglob("*") if path.is_dir()]
        for path in (lab.folder.path, *folders):
            path.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", OTHER, str(out)], env=os.environ, capture_output=True, text=True
        )
        for path in (lab.folder.path, *folders):
            path.chmod(0o755)
    said = done.stdout.partition("as another\n")[2]
    assert f"run by process {os.getpid()} on " in said, done
    assert "4/4 done" in said
    assert re.findall(r"exit code (\d)", said) == ["0", "2", "2", "0"], done
    stopped, exported = done.stderr.splitlines()
    assert stopped.startswith(f"error: {lab.folder.path}: run by process {os.getpid()} on ")
    assert stopped.endswith("; you may not write here: stop it as its owner")
    assert exported == f"error: {lab.folder.path / 'export'}: Permission denied"
    assert not lab.folder.stop.exists()
    assert len(list((out / "own").iterdir())) == 3
