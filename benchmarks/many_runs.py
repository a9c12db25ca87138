"""What thousands of runs cost: writing the store anew, running a finished sweep again, the list and
the report.

    OMP_NUM_THREADS=1 python -m benchmarks.many_runs [--trials 2000]

The trials are folders as training leaves them (a config of 60 keys, 20 rows of 15 values, a result,
a depth record, a small checkpoint), of five variants at four sizes. On a busy machine CPU seconds
say more than wall-clock. Writes a row to benchmarks/results/YYYY-MM-DD-many-runs.csv.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
from pathlib import Path

import numpy as np
import yaml

from attnres_lab.benchmarks.saving import save_row
from attnres_lab.runs.folder import write_json
from attnres_lab.runs.sweep import Entry, SweepFolder

VARIANTS = ("baseline", "full", "block8", "denseformer", "mhc")
SIZES = (16, 32, 64, 128)
ROWS, LAYERS = 20, 8


def make(folder: SweepFolder, trials: int) -> None:
    """A finished sweep of so many trials."""
    from attnres_lab.config import RunConfig, flatten  # torch, which the mirror does not need

    rng = np.random.default_rng(0)
    base = flatten(RunConfig())
    entries = []
    for index in range(trials):
        variant, dim = VARIANTS[index % 5], SIZES[index // 5 % 4]
        entry = Entry(
            *(f"{index:08x}", f"{index % 20:08x}", {"model.dim": dim}, variant, f"d{dim}-L8"),
            *(index // 20, f"{variant}-d{dim}-L8-s{index // 20}", 100 * dim * dim, 1e12, 10**6),
        )
        entries.append(entry)
        _trial(folder, entry, base | {"model.dim": dim, "seed": entry.seed}, rng)
    folder.write_plan(entries)
    folder.describe(
        "many", "base.yaml", "name: many\nbase: base.yaml\nspace: {model.dim: [16, 32, 64, 128]}\n"
    )


def _trial(
    folder: SweepFolder, entry: Entry, config: dict[str, object], rng: np.random.Generator
) -> None:
    files = folder.trial(entry.hash)
    files.path.mkdir(parents=True)
    files.config.write_text(yaml.safe_dump(config))
    labels = {key: getattr(entry, key) for key in ("variant", "size", "seed", "run_name")}
    write_json(
        files.environment,
        labels
        | {"config": config, "config_hash": entry.hash, "revision": "abc", "params": 1000}
        | {"data_fingerprint": "f00", "device": "cpu", "dirty": False},
    )
    loss = 4.0 - 0.05 * VARIANTS.index(entry.variant) + 0.01 * float(rng.normal())
    for step in range(1, ROWS + 1):
        row = {"step": 10 * step, "time": 1.7e9 + step, "tokens": 1000 * step, "flops": 1e9 * step}
        row |= {"seconds": float(step), "train/loss": loss + 1 / step}
        files.append_metrics(row | {f"perf/{name}": 0.1 * step for name in "abcdefghi"})
    end = {"step": 10 * ROWS, "tokens": 1000 * ROWS, "flops": 1e9 * ROWS, "seconds": float(ROWS)}
    write_json(files.result, end | {"val/loss": loss, "train/loss": loss, "params": 100})
    reads = [
        {"sublayer": n, "kind": "mlp", "sources": ["f"] * n, "weights": [1 / n] * n, "entropy": 0.5}
        for n in range(1, 2 * LAYERS + 2)
    ]
    record = {"step": 10 * ROWS, "reads": reads if entry.variant != "baseline" else []}
    write_json(files.new_artifact("depth", f"step-{10 * ROWS:06d}.json"), record)
    files.checkpoint.parent.mkdir()
    files.checkpoint.write_bytes(b"weights")
    files.log.write_text("trained\n")
    files.set_status("finished", step=10 * ROWS)


def mirror() -> None:
    """The mirror of a sweep that is run again."""
    from attnres_lab.tracking import SweepMirror

    with SweepMirror("many", SweepFolder.named("many").path, {}):
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--mirror", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mirror:
        return mirror()
    from benchmarks.sweep_engine import command  # torch again

    trials = arguments.trials
    row: dict[str, object] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_before": round(os.getloadavg()[0], 1),
        "trials": trials,
    }
    with tempfile.TemporaryDirectory() as temporary:
        os.environ |= {"ATTNRES_RUNS": f"{temporary}/runs", "PYTHONPATH": os.getcwd()}
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        make(SweepFolder.named("many"), trials)
        (spec := Path(temporary) / "many.yaml").write_text("name: many\n")
        for name, words in {
            "list": ("attnres_lab", "runs", "list", "--limit", "0"),
            "rebuild": ("attnres_lab", "track", "rebuild"),
            "mirror_again": ("benchmarks.many_runs", "--mirror"),
            "report": ("attnres_lab", "report", str(spec)),
        }.items():
            row[f"{name}_wall_s"], row[f"{name}_cpu_s"] = command(*words)
    save_row("many-runs", row)


if __name__ == "__main__":
    main()
