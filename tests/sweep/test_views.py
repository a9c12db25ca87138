"""What a user sees of a sweep: while it runs, from another terminal, and as tables afterwards."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from attnres_lab.errors import UserError
from attnres_lab.sweep.known import export
from attnres_lab.sweep.report import print_log, print_status
from tests.sweep.conftest import Lab, in_process
from tests.sweep.services import wait_for
from tests.sweep.test_crash import CHAIN


def test_a_terminal_gets_a_live_table_and_a_file_plain_lines(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.15")
    path = lab.sweep(space={"seed": [0, 1]}, **CHAIN)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    lab.run(path)
    live = capsys.readouterr().out
    assert "\x1b[" in live
    assert "0/2 done, 2 running" in live
    assert "optim" not in live  # nothing varies but the seed
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.01")
    lab.run(lab.sweep(space={"seed": [2, 3]}, **CHAIN))
    plain = capsys.readouterr().out
    assert "\x1b" not in plain
    assert [line.split()[0] for line in plain.splitlines()] == ["s:", "finished", "finished", "2/2"]


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
    print_log(lab.folder.plan()[0].hash[:5])
    assert "ValueError: a bug" in capsys.readouterr().out
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
    csv, parquet = export(lab.folder, lab.path / "out")
    for table in (pd.read_csv(csv), pd.read_parquet(parquet)):
        assert set(table["hash"]) == set(lab.states())
        assert set(table["state"]) == {"finished"}
        best = table[table["optim.lr"] == 3e-3]["val/loss"].max()
        assert best == pytest.approx(1.0 + 1 / 32)
        assert table["model.residual.num_blocks"].notna().sum() == 4
