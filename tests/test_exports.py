"""One schema for everything that leaves as a table: the same names in the same order, for the same
runs the same values, in each format and from each command.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis import load_runs
from attnres_lab.runs.files import write_json
from attnres_lab.runs.table import FIRST
from tests.test_cli import attnres
from tests.test_cli_runs import lab_here

SPACE = {
    "size": {"s": {"model.dim": 32}, "m": {"model.dim": 64}},
    "model.residual": ["baseline", {"name": "block", "num_blocks": [2]}],
    "seed": [0, 1],
}
#: Of an export, but not of ``load_runs``, which is for arithmetic.
ABOUT = {
    *("failure", "message", "config_hash", "revision", "dirty", "device", "step"),
    *("planned_flops", "planned_tokens"),
}
SHARED = ("name", "trial", "status", "variant", "size", "seed")


@pytest.fixture
def tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, pd.DataFrame]:
    """By file, what the commands wrote of a sweep of eight trials of which one diverged."""
    lab = lab_here(tmp_path, monkeypatch)
    lab.run(lab.sweep(space=SPACE))
    for entry in lab.folder.plan():  # as training writes it
        labels = {key: getattr(entry, key) for key in ("run_name", "variant", "size", "seed")}
        config = {"model.dim": 32, "model.residual.name": entry.variant, "callbacks": []}
        run = lab.folder.trial(entry.hash)
        write_json(run.environment, {**labels, "data_fingerprint": "x", "config": config})
        write_json(run.result, {"val/loss": 1.0 + entry.seed, "flops": 1e9, "step": 10})
    bad = lab.folder.trial(lab.folder.plan()[0].hash)
    write_json(bad.result, {"val/loss": float("nan"), "flops": 1e9, "step": 3})
    bad.set_status("diverged", message="the loss is not finite")
    out = tmp_path / "out"
    out.mkdir()
    assert attnres(monkeypatch, "sweep", "export", "s", "--to", str(out)) == 0
    for ending in ("csv", "parquet", "json"):
        assert attnres(monkeypatch, "runs", "export", str(out / f"runs.{ending}")) == 0
    found = {path.name: read(path) for path in out.iterdir()}
    found["load_runs"] = load_runs("s")
    found["again"] = load_runs(out / "runs.json")
    return found


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".json":
        return pd.DataFrame(json.loads(path.read_text()))
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


def test_every_table_has_the_same_columns_in_the_same_order(
    tables: dict[str, pd.DataFrame],
) -> None:
    columns = {name: list(table) for name, table in tables.items()}
    assert (
        columns["runs.parquet"] == columns["runs.json"] == columns["again"] == columns["runs.csv"]
    )
    # the CSV of a sweep, which another clone goes on from, has a checksum of each row beside
    trials = [key for key in columns["trials.csv"] if key != "sha256"]
    assert columns["trials.parquet"] == columns["trials.json"] == trials
    for own in columns.values():
        first = [key for key in FIRST if key in own]
        assert own == first + sorted(set(own) - set(first))
        assert not {key for key in own if key.startswith("config/")} | {"state", "hash"} & set(own)
        assert {*SHARED, "model.dim", "model.residual.name", "val/loss"} <= set(own)
    # what the plan calls a point is all that the runs' own files do not say
    assert set(columns["load_runs"]) - set(columns["runs.csv"]) == {"model.residual"}
    assert set(columns["runs.csv"]) - set(columns["load_runs"]) <= ABOUT


def test_every_table_holds_the_same_values(tables: dict[str, pd.DataFrame]) -> None:
    by_trial = {name: table.set_index("trial").sort_index() for name, table in tables.items()}
    first = by_trial["load_runs"]
    assert len(first) == 8
    for name, table in by_trial.items():
        losses = pd.to_numeric(table["val/loss"], errors="coerce")
        pd.testing.assert_series_equal(losses, first["val/loss"], check_index_type=False)
        for key in ({*SHARED} - {"trial"}) | ({"run_id", "sweep"} & set(table)):
            assert list(table[key]) == list(first[key]), (name, key)


def test_rows_open_with_the_labels_of_their_run(
    tables: dict[str, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(tables["load_runs"]["run_id"][0])
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "time": 0.5, "train/loss": 2.0}\n{"step": 2, "time": 1.5, "b": 1.0}\n'
    )
    for ending in ("csv", "json"):
        file = tmp_path / f"rows.{ending}"
        assert attnres(monkeypatch, "runs", "export", str(file), str(run), "--rows") == 0
        table = read(file)
        labels = [key for key in FIRST if key not in ("data_fingerprint", "tuning")]
        assert list(table) == [*labels, "step", "time", "b", "train/loss"]
        assert list(table["step"]) == [1, 2]
