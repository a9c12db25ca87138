"""A sweep as the lab leaves it behind: an MLflow store and a folder, with a gain that is known
because it was put in.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from attnres_lab.runs import Entry, RunFolder, SweepFolder
from attnres_lab.runs.files import write_json

GAINS = {"baseline": 1.0, "full": 1.3, "block8": 1.15}
SIZES = {"d32-L8": 1e13, "d48-L8": 4e13, "d64-L8": 1.6e14, "d96-L12": 6.4e14}
SPEC = """name: demo
question: >-
  What do Full and Block buy at a scale
  that a laptop can train?
base: ../experiments/tiny.yaml
space:
  seed: [0, 1]
"""


@dataclass(frozen=True)
class Tracked:
    """Where the sweep ``demo`` lies, and what was put into it."""

    uri: str
    folder: Path
    spec: Path
    sizes: dict[str, float]
    gains: dict[str, float]


def loss(flops: float, gain: float, seed: int) -> float:
    """A power law, shifted by the gain, with a common effect of the seed and a little noise."""
    noise = np.random.default_rng([int(flops / 1e10), int(gain * 100), seed]).normal(0, 5e-4)
    return float(9.0 * (flops * gain / 1e13) ** -0.06 * np.exp(0.004 * seed + noise))


def depth_record(sublayers: int, full: bool) -> dict:
    """Weights that fall off with distance and sum to 1."""
    reads = []
    for sublayer in range(1, sublayers + 1):
        names = (
            ["embedding", *(f"f{i}" for i in range(1, sublayer + 1))]
            if full
            else ["embedding", *(f"b{i}" for i in range(1, sublayer // 2 + 1))]
        )
        names += ["partial"] if not full and sublayer % 2 else []
        weights = np.exp(np.arange(len(names)) / 2.0)
        weights /= weights.sum()
        kind = "output" if sublayer == sublayers else ("mlp" if sublayer % 2 else "attention")
        entropy = float(-np.sum(weights * np.log(weights)))
        reads.append(
            {
                "sublayer": sublayer,
                "kind": kind,
                "sources": names,
                "weights": weights.tolist(),
                "entropy": entropy,
            }
        )
    rms = [1.0 + 0.2 * i for i in range(sublayers)]
    return {"step": 100, "reads": reads, "output_rms": rms, "gradient_norm": [1 / r for r in rms]}


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """An empty MLflow store with the experiment ``attnres``; its schema takes seconds, so it is
    made once and copied.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").create_experiment(
        "attnres", artifact_location=(file.parent / "artifacts").as_uri()
    )
    return file


@pytest.fixture(scope="session")
def tracked(store, tmp_path_factory) -> Tracked:
    """The sweep ``demo``: 4 sizes x 3 variants x 2 seeds finished, and one run that diverged."""
    import shutil

    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    root = tmp_path_factory.mktemp("demo")
    (root / "runs").mkdir()
    shutil.copy(store, root / "runs" / "mlflow.db")
    client = MlflowClient(f"sqlite:///{root / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("attnres").experiment_id
    folder = root / "runs" / "sweeps" / "demo"
    parent = client.create_run(
        experiment, tags={"sweep": "demo", "kind": "sweep"}, run_name="demo"
    ).info.run_id
    cells = [(v, s, seed) for v in GAINS for s in SIZES for seed in (0, 1)] + [
        ("full", "d96-L12", 2)
    ]
    plan = []
    for variant, size, seed in cells:
        state, trial = (
            "diverged" if seed == 2 else "finished",
            f"{variant}{size}{seed}".replace("-", ""),
        )
        tags = {
            "sweep": "demo",
            "kind": "run",
            "mlflow.parentRunId": parent,
            "variant": variant,
            "size": size,
            "seed": str(seed),
        }
        tags |= {"status": state, "trial": trial, "data_fingerprint": "0123456789ab"}
        run = client.create_run(
            experiment, tags=tags, run_name=f"{variant}-{size}-s{seed}"
        ).info.run_id
        blocks = "8" if variant == "block8" else "null"
        params = {
            "seed": seed,
            "model.dim": size[1:3],
            "model.residual.num_blocks": blocks,
            "optim.lr": "0.003",
            "model.tie": "true",
            "name": "base",
        }
        metrics, flops = [], SIZES[size]
        for k in range(1, 5):
            row = {
                "train/loss": 10 - k,
                "tokens": 1e5 * k,
                "flops": flops * k / 4,
                "seconds": k * flops / 1e14,
                "device_seconds": k * flops / 1e14,
            }
            metrics += [Metric(key, float(value), 1000 * k, 25 * k) for key, value in row.items()]
        metrics.append(
            Metric(
                "val/loss",
                loss(flops, GAINS[variant], seed) if seed < 2 else float("nan"),
                5000,
                100,
            )
        )
        metrics.append(Metric("factor/optim.lr", 0.003, 5000, 0))
        client.log_batch(
            run,
            metrics,
            [Param(key, str(value)) for key, value in params.items()],
            [RunTag("mlflow.note.content", "x")],
        )
        (folder / "trials" / trial / "artifacts" / "depth").mkdir(parents=True)
        environment = {
            "run_name": f"{variant}-{size}-s{seed}",
            "variant": variant,
            "size": size,
            "data_fingerprint": "0123456789ab",
            "train_tokens": 250_000,
            "config": {
                "seed": seed,
                "model.dim": int(size[1:3]),
                "model.residual.num_blocks": 8 if variant == "block8" else None,
                "optim.lr": 0.003,
                "model.tie": True,
                "name": "base",
            },
            "revision": "abc1234",
            "dirty": False,
            "device": "cpu",
            "versions": {"torch": "2.13.0"},
            "seed": seed,
        }
        (folder / "trials" / trial / "environment.json").write_text(json.dumps(environment))
        files = RunFolder(folder / "trials" / trial)
        for step in (25, 50, 75, 100):
            values = {m.key: m.value for m in metrics if m.step == step and m.key != "val/loss"}
            files.append_metrics({"step": step, "time": 0.04 * step} | values)
        result = {m.key: m.value for m in metrics if m.step == 100}
        write_json(files.result, {"step": 100} | result)
        files.set_status(state, step=100)
        plan.append(
            Entry(
                trial,
                variant,
                {"seed": seed},
                variant,
                size,
                seed,
                environment["run_name"],
                1000,
                flops,
                400_000,
            )
        )
        record = depth_record(8, full=variant == "full") | (
            {"reads": []} if variant == "baseline" else {}
        )
        (folder / "trials" / trial / "artifacts" / "depth" / "step-000100.json").write_text(
            json.dumps(record)
        )
    SweepFolder(folder).write_plan(plan)
    spec = root / "demo.yaml"
    spec.write_text(SPEC)
    return Tracked(f"sqlite:///{root / 'runs' / 'mlflow.db'}", folder, spec, SIZES, GAINS)


@pytest.fixture(scope="session")
def demo(tracked, tmp_path_factory):
    """The report of the sweep ``demo``."""
    from analysis.report import write_report

    return write_report(
        "demo",
        tmp_path_factory.mktemp("out"),
        spec=tracked.spec,
        folder=tracked.folder,
        tracking_uri=tracked.uri,
    )


@pytest.fixture(scope="session")
def text(demo) -> str:
    """Its Markdown."""
    return demo.markdown.read_text()


@pytest.fixture
def quick(monkeypatch) -> None:
    """Figures are drawn but not rendered, which is most of the time that a report takes."""

    def save(figure, path) -> None:
        path.write_bytes(b"\x89PNG")
        path.with_suffix(".pdf").write_bytes(b"%PDF")

    monkeypatch.setattr("analysis.plots.save", save)
