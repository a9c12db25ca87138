"""A tracking server that dies, hangs and comes back: training goes on, and the store ends as if
nothing had happened.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracking_helpers import OLD_LOADER, dump, position, write_run, write_sweep

from attnres_lab.runs.folder import RunFolder
from attnres_lab.tracking import SweepMirror, rebuild, tracking_uri
from tests.sweep.conftest import Lab
from tests.sweep.services import wait_for
from tests.sweep.test_crash import CHAIN, check_exact, check_mlflow

pytestmark = [pytest.mark.infra, pytest.mark.filterwarnings(OLD_LOADER)]


class Server:
    """An MLflow server on loopback that can be killed, stopped and started again on the same
    port.
    """

    def __init__(self, folder) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        command += [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]
        environment = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        log = open(self.folder / "log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=log, stderr=log
        )
        log.close()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{self.uri}/health", timeout=2),
            ):
                return
            time.sleep(0.2)
        raise AssertionError((self.folder / "log").read_text())

    def send(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server(tmp_path / "server")
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path / "runs"))
    yield server
    server.kill()


def grow(files: RunFolder, first: int, last: int) -> None:
    """Rows every 10 steps, as a training would write them."""
    files.set_status("running", step=first)
    for step in range(first, last + 10, 10):
        files.append_metrics(position(step) | {"train/loss": 3.0 + 1 / step})
        time.sleep(0.02)


def undisturbed(home: Path, monkeypatch, tmp_path: Path) -> dict[str, dict]:
    """What a store holds that is written from the folders in one quiet go."""
    for name in ("tracking.json", "sweep.json"):
        for path in home.rglob(name):
            path.unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/calm.db")
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path / "calm"))
    list(rebuild(home))
    return dump(os.environ["MLFLOW_TRACKING_URI"])


def test_a_sweep_survives_its_server(server, tmp_path, monkeypatch, capfd) -> None:
    """Killed three times and stalled for 30 s during a sweep: training never waits, and the store
    equals that of an undisturbed sweep.
    """
    home = tmp_path / "runs" / "sweeps" / "storm"
    plan = write_sweep(home, done=0)
    trials = [
        write_run(
            home / "trials" / entry["hash"],
            variant=entry["variant"],
            seed=entry["seed"],
            state="running",
        )
        for entry in plan
    ]
    for files in trials:
        files.metrics.unlink()
    longest = 0.0
    with SweepMirror("storm", home, {}):
        for turn in range(4):
            for files in trials:
                began = time.monotonic()
                grow(files, 300 * turn + 10, 300 * turn + 300)
                longest = max(longest, time.monotonic() - began)
            if turn < 3:
                server.kill()
                for files in trials:
                    grow(files, 300 * turn + 300, 300 * turn + 290)  # status only
                time.sleep(2)
                server.start()
            else:
                server.send(signal.SIGSTOP)
                time.sleep(30)
                server.send(signal.SIGCONT)
            time.sleep(5)
        for files in trials:
            files.set_status("finished", step=1200)
    assert "cannot be written" in capfd.readouterr().err
    list(rebuild(home))  # whatever the grace did not suffice for
    stormy = dump(server.uri)
    assert stormy == undisturbed(home, monkeypatch, tmp_path)
    assert (
        sum(point[0] == "train/loss" for run in stormy.values() for point in run["points"])
        == 4 * 120
    )
    assert longest < 10


def test_the_sweep_command_does_not_wait_for_its_server(server, tmp_path, monkeypatch) -> None:
    """Down while trials run, end and start: they go on at their pace, and the store has everything
    in the end.
    """
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.5")
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    lab = Lab(tmp_path)
    path = lab.sweep(space={"seed": [0, 1, 2, 3, 4, 5]}, **CHAIN)
    coordinator = subprocess.Popen(
        [sys.executable, "-m", "attnres_lab", "sweep", "run", str(path)],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(lab.witness()) >= 2)
    server.kill()
    before = len(lab.witness())
    time.sleep(10)
    assert len(lab.witness()) >= before + 4  # two ended, two started
    server.start()
    said = coordinator.communicate(timeout=120)[1]
    assert coordinator.returncode == 0, said
    assert "cannot be written" in said
    check_exact(lab)
    check_mlflow(server.uri, trials=6)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 32 kB under the folder of MLflow's artifacts."""
    folder = tmp_path / "runs" / "artifacts"
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
    if (
        os.getuid()
        or not shutil.which("mount")
        or subprocess.run(command, stderr=subprocess.DEVNULL).returncode
    ):
        pytest.skip("only root may mount a small disk, and not in every container")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_under_the_artifacts_loses_nothing(disk, tmp_path, monkeypatch, capfd) -> None:
    """Rows and states of every trial arrive; once there is room again, a rebuild completes the
    store to what it would have been, row for row.
    """
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("attnres_lab.tracking.mirror.GRACE", 60.0)
    home = tmp_path / "runs" / "sweeps" / "full"
    plan = write_sweep(home, done=0)
    with SweepMirror("full", home, {}):
        for entry in plan:
            write_run(home / "trials" / entry["hash"], variant=entry["variant"], seed=entry["seed"])
            (home / "trials" / entry["hash"] / "artifacts" / "large.bin").write_bytes(bytes(20_000))
        said, end = "", time.monotonic() + 120
        while "No space left on device" not in said and time.monotonic() < end:
            time.sleep(1)
            said += capfd.readouterr().err
    assert "No space left on device" in said
    held = dump(tracking_uri())
    assert [run["status"] for name, run in held.items() if name != "full"] == ["FINISHED"] * 4
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    list(rebuild(home))
    after = dump(tracking_uri())
    (best,) = after["full"]["points"]  # the sweep's own, once all of its trials are whole
    assert best[0] == "val/loss"
    assert {name: run["points"] for name, run in after.items() if name != "full"} == {
        name: run["points"] for name, run in held.items() if name != "full"
    }
    assert after == undisturbed(home, monkeypatch, tmp_path)
