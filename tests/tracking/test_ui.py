"""``attnres ui``: ready soon, reachable from this machine only, gone when it is stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import psutil
import pytest
from tracking_helpers import OLD_LOADER, write_run

from attnres_lab.errors import UserError
from attnres_lab.tracking import connect, rebuild, server
from attnres_lab.tracking.view import TAG, view

pytestmark = pytest.mark.filterwarnings(OLD_LOADER)


@pytest.mark.slow
def test_the_pages_come_and_go(runs, monkeypatch) -> None:
    """From any working directory, two started at once on ports of their own; one loopback address;
    after Ctrl-C or SIGTERM no process is left.
    """
    write_run(runs / "tiny")
    list(rebuild(runs))
    client, experiment = connect().client, connect().experiment_id
    client.set_experiment_tag(experiment, TAG, "an older view")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    command = [sys.executable, "-m", "attnres_lab", "ui"]
    started = [
        subprocess.Popen(
            command, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for _ in range(2)
    ]
    addresses = [process.stdout.readline().strip() for process in started]
    assert client.get_experiment(experiment).tags[TAG] == view()
    ports = [urlsplit(address).port for address in addresses]
    assert len(set(ports)) == 2
    for number, process, address, port in zip(
        (signal.SIGINT, signal.SIGTERM), started, addresses, ports, strict=True
    ):
        assert (
            address == f"http://127.0.0.1:{port}/#/experiments/{connect().experiment_id}/runs"
            "?workflowType=machine_learning&viewStateShareKey=attnres"
        )
        with urllib.request.urlopen(address.split("#")[0]) as answer:
            assert answer.status == 200
        family = psutil.Process(process.pid).children(recursive=True)
        listening = [
            c.laddr for p in family for c in p.net_connections("inet") if c.status == "LISTEN"
        ]
        assert {tuple(address) for address in listening} == {("127.0.0.1", port)}
        assert not [word for p in family for word in p.cmdline() if "mlflow.db" in word]
        environment = family[-1].environ()
        assert (
            environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"],
            environment["MLFLOW_DISABLE_TELEMETRY"],
        ) == ("false", "true")
        process.send_signal(number)
        assert process.wait(60) == 0
        process.stdout.close()
        assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_port_that_another_program_takes_first_is_left_to_it(runs, monkeypatch) -> None:
    """It was free when it was looked at, and the other program even answers as a healthy server
    does.
    """
    with HTTPServer(("127.0.0.1", 0), _Healthy) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        ends_soon = [sys.executable, "-c", "import time; time.sleep(0.5); raise SystemExit(1)"]
        monkeypatch.setattr(
            server, "_start", lambda uri, port: subprocess.Popen(ends_soon, start_new_session=True)
        )
        process = server._start("", other.server_port)
        assert server._ready(process, other.server_port) is False
        other.shutdown()
    process = server._start("", other.server_port)
    with pytest.raises(UserError, match="did not start"):
        server._ready(process, other.server_port)
