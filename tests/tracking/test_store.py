"""Opening the store: once created, clear errors, no secrets."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from tracking_helpers import OLD_LOADER, dump, write_run

from attnres_lab.errors import UserError
from attnres_lab.runs.files import read_json, write_json
from attnres_lab.tracking import connect, rebuild, redact, tracking_uri
from attnres_lab.tracking.store import reason
from tests.sweep.services import Postgres

pytestmark = pytest.mark.filterwarnings(OLD_LOADER)
CANARY = uuid4().hex  # not in the code: what is not committed is an artifact of a run
ROOT = Path(__file__).parents[2]
SWEEP = """
name: secret
base: {root}/experiments/quickstart.yaml
overrides: {{train.log_every: 2, model.dim: 16, budget: 4 steps}}
space: {{model.residual: [{{name: baseline}}, {{name: full}}]}}
launcher: {{name: local, workers: 1}}
storage: {storage}
"""
OPEN = (
    "from attnres_lab.tracking import connect; s = connect(); s.client.create_run(s.experiment_id)"
)


def start_eight() -> None:
    """Eight processes open an empty store at once and each writes a run."""
    processes = [
        subprocess.Popen([sys.executable, "-c", OPEN], stderr=subprocess.PIPE) for _ in range(8)
    ]
    failures = [
        error.decode()
        for process in processes
        if (error := process.communicate(timeout=300)[1]) and process.returncode
    ]
    assert not failures, failures[0]


@pytest.mark.slow
def test_eight_workers_start_on_an_empty_sqlite_store(tmp_path, monkeypatch) -> None:
    """Without the lock most of them die of the schema."""
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    start_eight()
    assert len(connect().client.search_runs([connect().experiment_id])) == 8


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Postgres]:
    """PostgreSQL of the test's own, and a store in it whose address holds a password."""
    server = Postgres()
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", server.url.replace("://lab", f"+psycopg2://lab:{CANARY}-address")
    )
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path / "runs"))
    yield server
    server.remove()


@pytest.mark.infra
def test_eight_workers_start_on_an_empty_postgresql_store_and_no_secret_leaves_the_environment(
    server, tmp_path, monkeypatch
) -> None:
    """A sweep, its report, an export and a rebuild with canaries in every variable that holds a
    secret: none is in a file, a table or a message.
    """
    start_eight()
    assert len(connect().client.search_runs([connect().experiment_id])) == 8
    secrets = (
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "PGPASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "ANY_API_KEY",
    )
    for name in secrets:
        monkeypatch.setenv(name, f"{CANARY}-{name}")
    subprocess.run(
        [
            server.home / "createdb",
            "-h",
            "127.0.0.1",
            "-p",
            str(server.port),
            "-U",
            "lab",
            "studies",
        ],
        check=True,
    )
    # MLflow and Optuna cannot share one
    databases = (
        server.url,
        server.url.replace("/postgres", "/studies"),
    )
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(SWEEP.format(root=ROOT, storage=databases[1]))
    said = ""
    for command in (
        ("sweep", "run", sweep),
        ("report", sweep),
        ("runs", "export", tmp_path / "runs.csv"),
        ("runs", "list"),
        ("track", "rebuild"),
    ):
        words = [sys.executable, "-m", "attnres_lab", *map(str, command)]
        process = subprocess.run(
            words,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=200,
        )
        said += process.stdout
        assert process.returncode == 0, process.stdout
    runs = connect().client.search_runs([connect().experiment_id], "tags.variant = 'full'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    tables = "".join(
        subprocess.run(
            [server.home / "pg_dump", url], capture_output=True, text=True, check=True
        ).stdout
        for url in databases
    )
    assert "val/loss" in tables
    assert "study_user_attributes" in tables
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 40
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    assert CANARY not in tables + said


def test_a_store_of_another_mlflow_is_named_with_the_remedy(runs) -> None:
    """An older schema: the version that is installed and the command that upgrades."""
    with contextlib.closing(sqlite3.connect(runs / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        database.execute("INSERT INTO runs (run_uuid, experiment_id) VALUES ('1', 0)")
    with pytest.raises(
        UserError, match=r"another version of MLflow.*mlflow db upgrade 'sqlite:///"
    ):
        connect()


def test_a_folder_store_is_refused(monkeypatch) -> None:
    """MLflow does not write to folders any more; the message says what to use."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(UserError, match="use sqlite"):
        connect()


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://lab:canary@host/db",
        "https://canary:canary@host",
        "failed at http://host/api?access_token=canary&x=1",
        "Bearer canary",
        "could not log in with canary-2/x",
    ],
)
def test_secrets_do_not_reach_messages(text, monkeypatch) -> None:
    """Passwords and tokens in addresses, and the values of the variables that hold them."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-2/x")
    assert "canary" not in redact(text)


def test_a_reason_is_the_innermost_one(runs, caplog) -> None:
    """Of a full disk below SQLite, SQLAlchemy and MLflow: its words alone, and no traceback of
    MLflow's beside them.
    """
    import sqlite3

    import sqlalchemy

    store = connect()

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    engine = store.client._tracking_client.store.engine
    sqlalchemy.event.listen(engine, "before_cursor_execute", full)
    try:
        with pytest.raises(Exception, match="disk is full") as caught:
            store.client.create_run(store.experiment_id)
    finally:
        sqlalchemy.event.remove(engine, "before_cursor_execute", full)
    assert reason(caught.value) == "OperationalError: database or disk is full"
    assert "Traceback" not in caplog.text


def test_an_experiment_name_of_the_user_is_respected(runs, monkeypatch) -> None:
    """MLFLOW_EXPERIMENT_NAME; artifacts stay in the folder of the runs."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "my study")
    store = connect()
    experiment = store.client.get_experiment(store.experiment_id)
    assert (experiment.name, experiment.artifact_location) == (
        "my study",
        (runs / "artifacts").as_uri(),
    )


def test_a_long_parameter_and_a_refused_name_arrive_whole(runs) -> None:
    """10,000 characters and a name with '=' in it."""
    from analysis.store import from_params

    files = write_run(runs / "odd")
    environment = read_json(files.environment) or {}
    environment["config"]["data.größe=(x)"] = "ü" * 10_000
    write_json(files.environment, environment)
    list(rebuild(files.path))
    (run,) = dump(tracking_uri()).values()
    assert from_params(run["params"])["data.größe=(x)"] == "ü" * 10_000
