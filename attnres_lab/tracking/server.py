"""MLflow's user interface: one server on the loopback address, on the right store, gone without a
trace when it is stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from typing import Any

import psutil

from attnres_lab.errors import UserError
from attnres_lab.runs.paths import artifacts_folder
from attnres_lab.runs.secrets import redact
from attnres_lab.tracking.sqlite import has_runs
from attnres_lab.tracking.store import (
    connect,
    experiment_name,
    file_of,
    is_server,
    lock,
    provide,
    tracking_uri,
)
from attnres_lab.tracking.view import KEY, TAG, view

READY_SECONDS, API = 60.0, "api/2.0/mlflow/experiments"
GUIDE = """  Runs table    sweeps (open one: note and report), then trials; sort by Created to fold
  Filter        tags.variant = 'full' and tags.size = 'd64-L12'; or group by a tag
  Charts        choose tokens, flops or seconds as x axis of train/loss and val/loss"""


def serve(port: int) -> None:
    """Run the server until Ctrl-C or SIGTERM. Raises UserError when there is no store, the port is
    taken or the store is of another MLflow.
    """
    uri = tracking_uri()
    if is_server(uri):
        print(
            f"{redact(uri)} is a tracking server with its own pages: open {redact(uri)} "
            "(MLFLOW_TRACKING_URI)"
        )
        return
    path = file_of(uri)
    if path and not path.exists():
        raise UserError(
            f"{redact(uri)}: there is no store yet; train or sweep first, or set ATTNRES_RUNS to "
            "the folder of the runs"
        )
    if path and has_runs(path):
        with lock(uri):  # a run that is just opening the store finishes first
            provide(path)
    else:
        connect()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    for candidate in [port] if port else range(5000, 5100):
        if _taken(candidate):
            continue
        process = _start(uri, candidate)
        try:
            if _ready(process, candidate):
                print(f"{_address(candidate)}\n{GUIDE}\nCtrl-C ends it.", flush=True)
                raise UserError(
                    f"the MLflow server ended with code {process.wait()}; its messages are above"
                )
        except KeyboardInterrupt:
            return
        finally:
            _stop(process)
    raise UserError(f"--port: {port or '5000 to 5099'} is in use; choose another")


def _start(uri: str, port: int) -> subprocess.Popen[bytes]:
    """The server, in a process group of its own. The store's address goes by the environment: a
    command line is visible to everybody.
    """
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_REGISTRY_STORE_URI": uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": artifacts_folder().as_uri(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "PYTHONWARNINGS": "ignore",
    }
    options = [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--uvicorn-opts",
        "--log-level warning --no-access-log",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *options],
        env=environment,
        start_new_session=True,
    )


def _ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers; False when another program got the port first. Raises
    UserError when it does not start.
    """
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2),
        ):
            if _listens(process.pid, port):
                return True
        time.sleep(0.1)
    if process.poll() is not None and _taken(port):
        return False
    connect()  # says so when the store is of another MLflow
    raise UserError("the MLflow server did not start; its messages are above")


def _listens(pid: int, port: int) -> bool:
    """Whether it is our server that answers, and not another program's."""
    with contextlib.suppress(psutil.Error):
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        return any(
            c.laddr.port == port and c.status == psutil.CONN_LISTEN
            for p in family
            for c in p.net_connections("inet")
        )
    return False


def _address(port: int) -> str:
    """The page of the experiment, which gets our view where an older version made its own. The
    server is asked: importing MLflow here would take seconds.
    """
    home = f"http://127.0.0.1:{port}"
    name = urllib.parse.urlencode({"experiment_name": experiment_name()})
    with contextlib.suppress(OSError):
        found = _ask(f"{home}/{API}/get-by-name?{name}")["experiment"]
        own = {"experiment_id": found["experiment_id"], "key": TAG, "value": view()}
        if {"key": TAG, "value": view()} not in found.get("tags", []):
            _ask(f"{home}/{API}/set-experiment-tag", own)
        query = f"workflowType=machine_learning&viewStateShareKey={KEY}"
        return f"{home}/#/experiments/{found['experiment_id']}/runs?{query}"
    return f"{home}/#/experiments"


def _ask(address: str, content: dict[str, str] | None = None) -> Any:
    """The JSON that the server answers. Raises OSError where it does not."""
    request = urllib.request.Request(address, headers={"Content-Type": "application/json"})
    data = json.dumps(content).encode() if content else None
    with urllib.request.urlopen(request, data) as answer:
        return json.load(answer)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole group; what does not end in five seconds is killed."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
