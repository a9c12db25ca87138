"""Runs come out as tidy tables, from their folders and from a store."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.runs import depth_artifacts, load_curves, load_runs
from attnres_lab.runs import Entry, RunFolder, SweepFolder
from attnres_lab.runs.files import write_json

# MLflow with SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module", params=["folders", "store"])
def uri(request, tracked) -> str | None:
    """Where the sweep is read from."""
    return tracked.uri if request.param == "store" else None


@pytest.fixture(scope="module")
def runs(tracked, uri) -> pd.DataFrame:
    return load_runs("demo" if uri else tracked.folder, uri)


def test_a_sweep_is_one_row_per_run_without_its_parent(runs) -> None:
    assert len(runs) == 25
    assert runs["run_id"].is_unique
    assert set(runs["name"]) >= {"full-d32-L8-s0", "baseline-d96-L12-s1"}


def test_labels_are_columns_and_the_seed_is_a_number(runs) -> None:
    assert list(runs.columns[:8]) == [
        "run_id",
        "name",
        "sweep",
        "status",
        "variant",
        "size",
        "seed",
        "data_fingerprint",
    ]
    assert runs["seed"].dtype.kind == "i"
    assert runs.groupby("status").size().to_dict() == {"diverged": 1, "finished": 24}
    assert set(runs["data_fingerprint"]) == {"0123456789ab"}


def test_config_keys_become_numbers_booleans_and_missing_values(runs) -> None:
    assert (runs["optim.lr"] == 0.003).all()
    assert runs["model.tie"].all()
    blocks = runs.groupby("variant")["model.residual.num_blocks"].agg(["min", "count"])
    assert blocks.loc["block8"].tolist() == [8, 8]
    assert blocks.loc["full", "count"] == 0


def test_metrics_stand_at_their_last_value(runs, tracked) -> None:
    finished = runs[runs["status"] == "finished"]
    assert set(finished["flops"]) == set(tracked.sizes.values())
    assert (finished["tokens"] == 4e5).all()
    assert runs.loc[runs["status"] == "diverged", "val/loss"].isna().all()


def test_metrics_that_repeat_config_keys_are_left_out(runs) -> None:
    assert not [column for column in runs if column.startswith("factor/")]


def test_a_table_in_a_file_is_read_as_it_is(tmp_path) -> None:
    table = pd.DataFrame(
        {"variant": ["baseline", "full"], "flops": [1e15, 1e15], "val/loss": [2.0, 1.9]}
    )
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        pd.testing.assert_frame_equal(load_runs(tmp_path / name), table, check_dtype=False)
    with pytest.raises(FileNotFoundError):
        load_runs(tmp_path / "absent.csv")


def test_curves_are_long_and_carry_their_place(uri, runs) -> None:
    curves = load_curves("demo", uri, runs=runs[runs["seed"] == 0].head(3))
    train = curves[curves["key"] == "train/loss"]
    assert train.groupby("run_id")["value"].apply(list).tolist() == [[9, 8, 7, 6]] * 3
    assert train.groupby("run_id")["step"].apply(list).tolist() == [[25, 50, 75, 100]] * 3
    assert (train["tokens"] == 1e5 * train["step"] / 25).all()
    assert list(curves.columns) == [
        "run_id",
        "name",
        "variant",
        "size",
        "seed",
        "key",
        "step",
        "tokens",
        "flops",
        "seconds",
        "value",
    ]


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> SweepFolder:
    """Three planned trials, of which one has finished, one has begun and one has not."""
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    folder = SweepFolder.named("small")
    folder.path.mkdir(parents=True)
    folder.write_plan(
        Entry(hash, "p", {"optim": {"lr": lr}}, "full", "d32-L8", 0, f"full-{hash}", 9, 1e9, 4000)
        for hash, lr in (("done", 0.1), ("begun", 0.2), ("planned", 0.3))
    )
    finish(folder.trial("done"), 3.0)
    begun = folder.trial("begun")
    begun.path.mkdir()
    begun.set_status("running", step=5)
    begun.append_metrics({"step": 5, "time": 1.0, "train/loss": 4.0, "tokens": 50})
    return folder


def finish(run: RunFolder, loss: float | str) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    write_json(run.result, {"val/loss": loss, "step": 10, "flops": 1e9, "tokens": 4000})
    run.set_status("finished", step=10)


def test_a_name_a_folder_and_its_text_are_one_sweep(sweep, monkeypatch) -> None:
    table = load_runs("small")
    pd.testing.assert_frame_equal(table, load_runs(sweep.path))
    monkeypatch.chdir(sweep.path.parent)
    pd.testing.assert_frame_equal(table, load_runs("small"))
    assert table["trial"].tolist() == ["done", "begun", "planned"]
    assert table["status"].tolist() == ["finished", "running", "scheduled"]
    assert table["optim.lr"].tolist() == [0.1, 0.2, 0.3]
    assert table["tokens"].tolist()[:2] == [4000, 50]


def test_run_folders_beside_the_plan_are_never_mixed_in(sweep) -> None:
    finish(sweep.trial("stale"), 0.1)
    assert "stale" not in set(load_runs("small")["trial"])
    assert (sweep.trials / "stale" / "result.json").exists()


def test_runs_that_belong_to_no_sweep_are_read_from_any_folder_above(tmp_path) -> None:
    for name in ("a", "b"):
        finish(RunFolder(tmp_path / "train" / name), 2.0)
    table = load_runs(tmp_path / "train")
    assert set(table["name"]) == {"a", "b"}
    assert set(table["run_id"]) == {str(tmp_path / "train" / name) for name in ("a", "b")}


def test_a_damaged_run_costs_its_own_row_at_most(sweep, capsys) -> None:
    """Its numbers are not there; those of the others are."""
    (sweep.trial("begun").path / "status.json").write_text("[]")
    (sweep.trial("done").result).write_text('{"val/loss": ')
    (sweep.trial("planned").path).mkdir()
    sweep.trial("planned").environment.write_text("")
    table = load_runs("small")
    assert table["status"].tolist() == ["finished", "damaged", "scheduled"]
    assert capsys.readouterr().err.count("damaged; set aside") == 3


def test_infinities_are_numbers(sweep) -> None:
    finish(sweep.trial("done"), "inf")
    assert load_runs("small")["val/loss"].iloc[0] == np.inf


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smal", "smal: no such sweep in .*, and no folder, did you mean 'small'"),
        ("empty", "empty: no run has started"),
        ("lost", r"lost: no .*plan\.json"),
    ],
)
def test_a_sweep_that_cannot_be_read_is_one_line(sweep, name, message) -> None:
    (sweep.path.parent / "empty").mkdir()
    finish(SweepFolder.named("lost").trial("x"), 1.0)
    with pytest.raises(ValueError, match=message) as error:
        load_runs(name)
    assert "\n" not in str(error.value)


def test_depth_records_are_where_the_run_left_them(tracked, tmp_path) -> None:
    run = load_runs(tracked.folder).iloc[0]
    found = depth_artifacts(run["run_id"], tmp_path)
    assert found == Path(run["run_id"]) / "artifacts" / "depth"
    assert depth_artifacts(str(tmp_path), tmp_path) is None


@pytest.mark.slow
def test_two_thousand_run_folders_load_within_five_seconds(tmp_path, monkeypatch) -> None:
    """With 55 config keys each; processor time."""
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    config = {f"section.key{k}": (1, 0.5, None, "text")[k % 4] for k in range(55)}
    for number in range(2000):
        run = RunFolder(tmp_path / "train" / f"r{number}")
        finish(run, 2.0)
        write_json(run.environment, {"variant": "full", "size": "s", "seed": 0, "config": config})
    start = time.process_time()
    assert load_runs(tmp_path / "train").shape[0] == 2000
    assert time.process_time() - start < 5


def test_the_package_is_imported_within_its_budget() -> None:
    code = (
        "import time, sys; t = time.process_time(); import analysis; print(time.process_time() - "
        "t, bool({'mlflow', 'torch'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout.split()
    assert float(output[0]) < 1.5
    assert output[1] == "False"


def test_whole_flop_beyond_64_bits_are_numbers(tmp_path) -> None:
    rows = [{"variant": "baseline", "seed": k, "flops": 10**k} for k in (1, 20)]
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv")
    (tmp_path / "runs.json").write_text(json.dumps(rows))
    for name in ("runs.csv", "runs.json"):
        table = load_runs(tmp_path / name)
        assert table["flops"].tolist() == [10.0, 1e20]
        assert table["flops"].dtype == float
