"""What an MLflow store holds comes out as the table that folders give, or in one line why not."""

import sqlite3
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from analysis.runs import load_curves, load_runs

# MLflow with SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


def test_an_experiment_holds_the_same_runs(tracked) -> None:
    runs = load_runs("demo", tracked.uri)
    assert set(load_runs("attnres", tracked.uri)["run_id"]) == set(runs["run_id"])


def test_a_misspelt_sweep_is_told_its_nearest_name(tracked) -> None:
    with pytest.raises(
        ValueError, match="demos: no such sweep or experiment is tracked, did you mean 'demo'"
    ):
        load_runs("demos", tracked.uri)


def test_a_name_with_a_quote_is_no_query(tracked) -> None:
    with pytest.raises(ValueError, match="no such sweep"):
        load_runs("demo' or tags.kind = 'run", tracked.uri)


def test_a_missing_store_is_named_and_not_created(tmp_path) -> None:
    with pytest.raises(ValueError, match="no runs are tracked there"):
        load_runs("demo", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert not list(tmp_path.iterdir())


def test_a_store_that_does_not_answer_is_one_line_without_its_password(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        ValueError, match=r"^http://127\.0\.0\.1:9: the runs cannot be read"
    ) as error:
        load_runs("demo", "http://user:geheim@127.0.0.1:9")
    assert "geheim" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_sweep_without_runs_and_an_empty_experiment_say_so(store) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    client.create_run(
        client.get_experiment_by_name("attnres").experiment_id,
        tags={"sweep": "empty", "kind": "sweep"},
    )
    for name, message in (("empty", "no run of this sweep"), ("attnres", "holds no runs yet")):
        with pytest.raises(ValueError, match=message):
            load_runs(name, f"sqlite:///{store}")


def test_of_two_sweeps_of_one_name_the_one_at_hand_is_read(store, tmp_path, monkeypatch) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("attnres").experiment_id
    for when, sweep_id in ((1, "old"), (2, "new")):
        client.create_run(
            experiment,
            when,
            {"sweep": "twice", "kind": "run", "sweep_id": sweep_id, "trial": sweep_id},
            "r",
        )
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    assert load_runs("twice", f"sqlite:///{store}")["trial"].tolist() == ["new"]
    (tmp_path / "sweeps" / "twice").mkdir(parents=True)
    (tmp_path / "sweeps" / "twice" / "sweep.json").write_text('{"id": "old"}')
    assert load_runs("twice", f"sqlite:///{store}")["trial"].tolist() == ["old"]


def test_names_and_infinities_come_back_as_they_were_tracked(store) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    run = client.create_run(client.create_experiment("odd"), run_name="r").info.run_id
    client.log_metric(run, "val/loss", float("inf"))
    client.log_metric(run, "depth/a_x28_1_x29_", 2.0)
    client.log_param(run, "data.fields_x3d_", "text")
    row = load_runs("odd", f"sqlite:///{store}").iloc[0]
    assert row["val/loss"] == np.inf
    assert row["depth/a(1)"] == 2.0
    assert row["data.fields="] == "text"


def test_a_value_written_twice_at_one_step_counts_once(store) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    run = client.create_run(client.create_experiment("resumed"), run_name="r").info.run_id
    for when, value in ((1, 5.0), (2, 4.0)):
        client.log_metric(run, "train/loss", value, timestamp=when, step=10)
    assert load_curves("resumed", f"sqlite:///{store}", keys=["train/loss"])["value"].tolist() == [
        4.0
    ]


@pytest.mark.slow
def test_five_thousand_runs_load_within_ten_seconds(store, tmp_path) -> None:
    """55 parameters, 25 metrics and 12 tags each, as a real sweep has; the limit is processor time,
    for the machine may be shared.
    """
    import shutil

    file = shutil.copy(store, tmp_path / "mlflow.db")
    fill(file, 5000)
    start = time.process_time()
    runs = load_runs("big", f"sqlite:///{file}")
    assert time.process_time() - start < 10
    assert runs.shape == (5000, 9 + 55 + 25)


def fill(file: Path, count: int) -> None:
    """Runs written with SQL, because through the client 5000 of them take minutes."""
    with sqlite3.connect(file) as db:
        (experiment,) = db.execute(
            "select experiment_id from experiments where name = 'attnres'"
        ).fetchone()
        for i in range(count):
            run = uuid.UUID(int=i).hex
            values = (
                run,
                f"r{i}",
                "UNKNOWN",
                "",
                "",
                "u",
                "FINISHED",
                i,
                None,
                "",
                "active",
                "",
                experiment,
                None,
            )
            db.execute(f"insert into runs values ({','.join('?' * 14)})", values)
            tags = {
                "sweep": "big",
                "kind": "run",
                "variant": "full",
                "size": "d64-L8",
                "seed": str(i % 4),
                "status": "finished",
                "trial": run[:12],
            }
            tags |= {
                "data_fingerprint": "abc",
                "mlflow.runName": f"r{i}",
                "mlflow.user": "u",
                "mlflow.parentRunId": "p",
                "mlflow.source.name": "x",
            }
            db.executemany(
                "insert into tags values (?, ?, ?)",
                [(key, value, run) for key, value in tags.items()],
            )
            params = [
                (f"section.key{k}", ("1", "0.5", "null", "text")[(i + k) % 4], run)
                for k in range(55)
            ]
            db.executemany("insert into params values (?, ?, ?)", params)
            db.executemany(
                "insert into latest_metrics values (?, ?, 0, 100, 0, ?)",
                [(f"m/{k}", i + k / 100, run) for k in range(25)],
            )
    db.close()
