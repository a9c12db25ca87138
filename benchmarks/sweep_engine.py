"""What the sweep engine costs: idle workers, seconds per trial, CPU of the coordinator, time to
plan and to look.

    OMP_NUM_THREADS=1 python -m benchmarks.sweep_engine [--nap 10] [--trials 1000]

Trials sleep or do nothing, but import what training imports. Idle is the share of two workers' time
that is not spent within a trial's function, from the first trial's start until nothing is owed any
more. A trial in a fresh interpreter is what a launcher without a fork server starts. On a busy
machine CPU seconds say more than wall-clock. Writes a row to
benchmarks/results/YYYY-MM-DD-sweep-engine.csv.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

import attnres_lab.training.run  # noqa: F401  (what a real trial imports)
from attnres_lab.benchmarks.saving import save_row
from attnres_lab.config import RunConfig

WORKERS = 2
BASE = {
    "model": {"dim": 32, "num_layers": 4, "num_heads": 2},
    "budget": "10 steps",
    "data": {"seq_len": 64},
}


def nap(config: RunConfig, folder: Path) -> dict[str, float]:
    """Sleep ``data.val_tokens`` / 6400 seconds, and say when."""
    begin = time.time()
    time.sleep(config.data.val_tokens / 6400)
    return {"val/loss": 1.0, "begin": begin, "end": time.time(), "seconds": 0.01}


def clocks(who: int) -> tuple[float, float]:
    """Wall-clock and CPU seconds of this process or of the children that ended."""
    used = resource.getrusage(who)
    return time.perf_counter(), used.ru_utime + used.ru_stime


def write(folder: Path, name: str, space: dict[str, Any], workers: int = WORKERS) -> Path:
    """A sweep file in ``folder``."""
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    path = folder / f"{name}.yaml"
    spec = {
        "name": name,
        "base": "base.yaml",
        "space": space,
        "launcher": {"workers": workers},
        "function": "benchmarks.sweep_engine:nap",
    }
    path.write_text(yaml.safe_dump(spec))
    return path


def run(path: Path) -> tuple[float, list[dict[str, float]]]:
    """CPU seconds of the coordinator, and the results in the order of their begin."""
    from attnres_lab.runs.folder import read_json
    from attnres_lab.runs.sweep import SweepFolder
    from attnres_lab.sweep.engine import run_sweep
    from attnres_lab.sweep.spec import load_spec

    folder = SweepFolder.named(path.stem)
    begin = clocks(resource.RUSAGE_SELF)
    outcome = run_sweep(load_spec(path), folder)
    cpu = clocks(resource.RUSAGE_SELF)[1] - begin[1]
    assert outcome.exit_code == 0
    return cpu, sorted(
        (read_json(folder.trial(e.hash).result) or {} for e in folder.plan()),
        key=lambda r: r["begin"],
    )


def idle_share(results: list[dict[str, float]]) -> float:
    """Of the workers' time while trials are owed."""
    first, last = results[0]["begin"], results[-1]["begin"]
    busy = sum(min(r["end"], last) - r["begin"] for r in results)
    return 1 - busy / (WORKERS * (last - first))


def command(*words: str) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a command."""
    begin = clocks(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)
    end = clocks(resource.RUSAGE_CHILDREN)
    return round(end[0] - begin[0], 2), round(end[1] - begin[1], 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nap", type=float, default=10.0)
    parser.add_argument("--trials", type=int, default=1000)
    arguments = parser.parse_args()
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ |= {
            "ATTNRES_RUNS": str(folder / "runs"),
            "ATTNRES_CACHE": str(folder / "cache"),
            "PYTHONPATH": os.getcwd(),
        }
        _, naps = run(
            write(
                folder,
                "naps",
                {"data.val_tokens": [int(6400 * arguments.nap)], "seed": list(range(10))},
            )
        )
        _, one = run(
            write(folder, "one", {"data.val_tokens": [64], "seed": list(range(40))}, workers=1)
        )
        forked = (one[-1]["begin"] - one[0]["begin"]) / (len(one) - 1) - 0.01
        trial = next((folder / "runs" / "sweeps" / "one" / "trials").iterdir())
        fresh = []
        for _ in range(3):
            for name in ("status.json", "result.json"):
                (trial / name).unlink()
            fresh.append(
                command("attnres_lab.sweep.trial", str(trial), "benchmarks.sweep_engine:nap")
            )
        cpu, _ = run(
            write(folder, "many", {"data.val_tokens": [64], "seed": list(range(arguments.trials))})
        )
        status = command("attnres_lab", "sweep", "status", str(folder / "many.yaml"))
        huge = write(
            folder,
            "huge",
            {
                "optim.lr": {"log": [1e-4, 1e-1, 100]},
                "model.dim": [32, 64, 96, 128],
                "seed": list(range(25)),
            },
        )
        plan = command("attnres_lab", "sweep", "plan", str(huge))
    row = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_before": load,
        "nap_s": arguments.nap,
        "idle_share": round(idle_share(naps), 4),
        "trial_forked_wall_s": round(forked, 3),
        "trial_fresh_wall_s": min(wall for wall, _ in fresh),
        "trial_fresh_cpu_s": min(cpu for _, cpu in fresh),
        "trials": arguments.trials,
        "coordinator_cpu_ms_per_trial": round(1e3 * cpu / arguments.trials, 1),
        "status_wall_s": status[0],
        "status_cpu_s": status[1],
        "plan_10000_wall_s": plan[0],
        "plan_10000_cpu_s": plan[1],
    }
    save_row("sweep-engine", row)


if __name__ == "__main__":
    main()
