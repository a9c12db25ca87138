"""What tracking costs: training steps with and without it, interleaved in one process; the pages
and the list of a store of thousands of runs.

python -m benchmarks.tracking steps sqlite      or: steps server (a server on loopback)
python -m benchmarks.tracking pages STORE       STORE: a folder for 5,000 runs of 200 points, kept
"""

from __future__ import annotations

import csv
import datetime
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch

from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.runs.folder import RunFolder
from attnres_lab.tracking import RunMirror
from benchmarks.tracking_pages import pages

RESULTS = Path(__file__).parent / "results"
PAIRS, BLOCK, LOG_EVERY = 30, 3.0, 10  # seconds per block; steps per row
KEYS = [
    "train/loss",
    "optim/lr",
    "optim/grad_norm",
    "peak_memory_bytes",
    *(f"perf/{n}" for n in "abcdefghijk"),
]


def steps(store: str) -> dict[str, Any]:
    """Mean step time in blocks with rows and a mirror that runs, against blocks without rows and
    with a mirror that is stopped.
    """
    with (
        TemporaryDirectory() as place,
        _server(Path(place)) if store == "server" else _sqlite(Path(place)) as serving,
    ):
        files = RunFolder(Path(place) / "runs" / "run")
        files.path.mkdir(parents=True)
        files.config.write_text("name: run\nseed: 0\n")
        files.set_status("running")
        train, step = _trainer(), 0
        with RunMirror(files.path) as mirror:
            sent = files.path / "tracking.json"
            while not sent.exists() or "config.yaml" not in sent.read_text():
                time.sleep(0.5)
            others = [psutil.Process(mirror._process.pid), *serving]
            wall: dict[bool, list[float]] = {True: [], False: []}
            cpu: dict[bool, list[float]] = {True: [], False: []}
            for block in range(2 * PAIRS):
                tracked = block % 4 in (0, 3)  # with, without, without, with: a drift cancels
                for process in others:
                    process.send_signal(signal.SIGCONT if tracked else signal.SIGSTOP)
                began, used, count = time.perf_counter(), time.process_time(), 0
                while (now := time.perf_counter()) - began < BLOCK:
                    train()
                    step, count = step + 1, count + 1
                    if tracked and step % LOG_EVERY == 0:
                        files.append_metrics(
                            {
                                "step": step,
                                "time": time.time(),
                                "tokens": step,
                                "flops": step,
                                "seconds": now,
                            }
                            | dict.fromkeys(KEYS, now)
                        )
                wall[tracked].append((time.perf_counter() - began) / count)
                cpu[tracked].append((time.process_time() - used) / count)
            for process in others:
                process.send_signal(signal.SIGCONT)
            files.set_status("finished", step=step)
    row: dict[str, Any] = {
        "what": f"steps {store}",
        "step_ms": round(1000 * statistics.median(wall[False]), 2),
        "pairs": PAIRS,
    }
    for name, times in (("wall", wall), ("cpu", cpu)):
        ratios = np.array(times[True]) / np.array(times[False]) - 1
        means = np.median(np.random.default_rng(0).choice(ratios, (4000, PAIRS)), 1)
        row |= {f"{name}_percent": round(100 * float(np.median(ratios)), 2)}
        row |= {
            f"{name}_{side}": round(100 * float(np.quantile(means, q)), 2)
            for side, q in (("low", 0.025), ("high", 0.975))
        }
    return row


def _trainer() -> Any:
    """A step of about 20 ms on one thread."""
    torch.set_num_threads(1)
    model = Transformer(ModelConfig(dim=64, num_layers=4, num_heads=2, vocab_size=256), 0)
    optimizer = torch.optim.AdamW(model.parameters())
    for batch in range(1, 200):
        tokens = torch.randint(256, (batch, 65))

        def step(tokens: torch.Tensor = tokens) -> None:
            logits = model(tokens[:, :-1])
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), tokens[:, 1:].flatten()
            ).backward()
            optimizer.step()
            optimizer.zero_grad()

        times = [-time.process_time()]
        for _ in range(8):
            step()
            times.append(time.process_time())
        if statistics.median(np.diff(times[1:])) > 0.019:
            break
    return step


@contextmanager
def _sqlite(place: Path) -> Iterator[list[psutil.Process]]:
    os.environ |= {
        "ATTNRES_RUNS": str(place / "runs"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db",
    }
    yield []


@contextmanager
def _server(place: Path) -> Iterator[list[psutil.Process]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "ATTNRES_RUNS": str(place / "runs"),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{place}/mlflow.db",
        "--artifacts-destination",
        str(place / "artifacts"),
    ]
    process = psutil.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(25)
    try:
        yield [process, *process.children(recursive=True)]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    """Measure and add the rows, with date, machine and load, to ``results/``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.date.today()}-tracking.csv"
    fields = [
        "date",
        "cores",
        "load",
        "what",
        "step_ms",
        "pairs",
        "wall_percent",
        "wall_low",
        "wall_high",
        "cpu_percent",
        "cpu_low",
        "cpu_high",
    ]
    fields += ["seconds", "cpu_seconds", "unfold_seconds", "lines", "note"]
    for row in pages(Path(sys.argv[2])) if sys.argv[1] == "pages" else [steps(sys.argv[2])]:
        known = path.exists()
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, fields)
            if not known:
                writer.writeheader()
            writer.writerow(
                {
                    "date": datetime.date.today(),
                    "cores": os.cpu_count(),
                    "load": round(os.getloadavg()[0], 1),
                    **row,
                }
            )
        print(row, flush=True)


if __name__ == "__main__":
    main()
