"""What tracking costs: training steps with and without it, interleaved in one process; the pages
and the list of a store of thousands of runs.

python -m benchmarks.tracking steps sqlite      or: steps server (a server on loopback)
python -m benchmarks.tracking pages STORE       STORE: a folder for 5,000 runs of 200 points, kept
"""

from __future__ import annotations

import csv
import datetime
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch

from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.runs.folder import RunFolder
from attnres_lab.tracking import RunMirror

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAIRS, BLOCK, LOG_EVERY = 30, 3.0, 10  # seconds per block; steps per row
KEYS = [
    "train/loss",
    "optim/lr",
    "optim/grad_norm",
    "peak_memory_bytes",
    *(f"perf/{n}" for n in "abcdefghijk"),
]
SWEEPS, TRIALS = 50, 99


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


def pages(folder: Path) -> Iterator[dict[str, Any]]:
    """Seconds until ``attnres ui`` is ready, until a new browser shows the experiment's first sweep
    and unfolds it, and of ``attnres runs list``.
    """
    from playwright.sync_api import sync_playwright

    os.environ |= {"ATTNRES_RUNS": str(folder / "runs")}
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if not (folder / "runs" / "mlflow.db").exists():
        fill(folder / "runs")
    for _ in range(3):
        began, used = time.perf_counter(), _cpu()
        listed = subprocess.run(
            [sys.executable, "-m", "attnres_lab", "runs", "list"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        yield {
            "what": "runs list",
            "seconds": _since(began),
            "cpu_seconds": round(_cpu() - used, 2),
            "lines": len(listed.stdout.splitlines()),
        }
    began, used = time.perf_counter(), _cpu()
    ui = subprocess.Popen(
        [sys.executable, "-m", "attnres_lab", "ui"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert ui.stdout
    address = ui.stdout.readline().strip()
    yield {"what": "ui ready", "seconds": _since(began), "cpu_seconds": round(_cpu() - used, 2)}
    with sync_playwright() as driver:
        for visit in range(3):
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1400, "height": 860})
            asked: dict[str, float] = {}
            page.on(
                "requestfinished",
                lambda r, asked=asked: asked.update(
                    {r.url.split("?")[0].rpartition("mlflow/")[2]: r.timing["responseEnd"]}
                ),
            )
            began, used = time.perf_counter(), _cpu()
            page.goto(address)
            page.get_by_role("link", name="sweep49", exact=True).wait_for(timeout=60_000)
            shown, spent = time.perf_counter(), round(_cpu() - used, 2)
            page.locator("[data-component-id$='runnamecellrenderer.tsx_46']").first.click()
            page.get_by_role("link", name="trial49-0", exact=True).wait_for(timeout=60_000)
            slowest = sorted(((round(ms), url[-40:]) for url, ms in asked.items()), reverse=True)[
                :4
            ]
            row = {
                "what": f"page, visit {visit}",
                "seconds": round(shown - began, 2),
                "cpu_seconds": spent,
                "unfold_seconds": _since(shown),
            }
            yield row | {"note": slowest}
            browser.close()
    ui.send_signal(signal.SIGINT)
    ui.wait()


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 2)


def _cpu() -> float:
    """CPU seconds of all processes started here, the ended ones included: server, browser,
    commands.
    """
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    ended = os.times()
    return sum(t.user + t.system for t in times) + ended.children_user + ended.children_system


def fill(runs: Path) -> None:
    """One trained run of 200 rows, then copies in the tables and of its folder: 50 sweeps of 99
    trials and their parents.

    Of the histories, which the experiment's page does not read, only the losses and their x axes;
    of the last values all.
    """
    base = [
        str(ROOT / "experiments" / "quickstart.yaml"),
        "model.dim=16",
        "budget=400 steps",
        "train.log_every=2",
        "train.batch_size=2",
    ]
    subprocess.run(
        [sys.executable, "-m", "attnres_lab", "train", *base],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (trained,) = (runs / "train").iterdir()
    with closing(sqlite3.connect(runs / "mlflow.db")) as db, db:
        (source,) = db.execute("SELECT run_uuid FROM runs").fetchone()
        columns = {
            t: [c[1] for c in db.execute(f"PRAGMA table_info({t})")]
            for t in ("runs", "tags", "params", "latest_metrics", "metrics")
        }
        for sweep in range(SWEEPS):
            parent = uuid.uuid4().hex
            for trial in range(-1, TRIALS):
                run = parent if trial < 0 else uuid.uuid4().hex
                for table, names in columns.items():
                    if trial >= 0 or table in ("runs", "tags"):
                        shown = ", ".join("?" if name == "run_uuid" else name for name in names)
                        few = (
                            " AND key IN ('train/loss', 'val/loss', 'tokens', 'flops', 'seconds')"
                            if table == "metrics"
                            else ""
                        )
                        db.execute(
                            f"INSERT INTO {table} SELECT {shown} FROM {table} WHERE run_uuid = "
                            f"?{few}",
                            [run, source],
                        )
                name = f"sweep{sweep}" if trial < 0 else f"trial{sweep}-{trial}"
                tags = {
                    "mlflow.runName": name,
                    "sweep": f"sweep{sweep}",
                    "kind": "sweep" if trial < 0 else "run",
                    "attnres.id": run,
                }
                tags |= {"mlflow.parentRunId": parent} if trial >= 0 else {}
                db.executemany(
                    "INSERT OR REPLACE INTO tags (key, value, run_uuid) VALUES (?, ?, ?)",
                    [(k, v, run) for k, v in tags.items()],
                )
                start = [name, 1000 * (sweep * 1000 - trial), run]
                db.execute(
                    "UPDATE runs SET name = ?, start_time = start_time + ? WHERE run_uuid = ?",
                    start,
                )
                if trial >= 0:
                    target = runs / "sweeps" / f"sweep{sweep}" / "trials" / str(trial)
                    target.mkdir(parents=True)
                    for file in (
                        "config.yaml",
                        "environment.json",
                        "status.json",
                        "result.json",
                        "metrics.jsonl",
                    ):
                        shutil.copyfile(trained / file, target / file)


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
