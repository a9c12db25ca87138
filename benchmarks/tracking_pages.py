"""The pages and the list of a store of thousands of runs: ``benchmarks.tracking pages``."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
SWEEPS, TRIALS = 50, 99


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
