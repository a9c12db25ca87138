"""Run folders as training writes them, and what a store holds of them."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from pytorch_lightning.loggers.logger import DummyLogger

from attnres_lab.runs.folder import RunFolder, write_json


class Quiet(DummyLogger):
    """A logger with a secret, as those of services have."""

    def __init__(self, api_key: str, uri: str) -> None:
        super().__init__()


#: MLflow 3.17 uses a loader that SQLAlchemy 2.1 deprecates.
OLD_LOADER = "ignore:The ``noload`` loader strategy is deprecated"


def write_run(
    folder: Path, *, variant="full", seed=0, steps=range(10, 60, 10), state="finished", loss=3.0
) -> RunFolder:
    """A run as training leaves it: two rows at the last step, a depth record, a result."""
    files = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.config.write_text(
        f"name: run\nseed: {seed}\nmodel: {{dim: 32, num_layers: 8, residual: {{name: "
        f"{variant}}}}}\nbudget: 40000 tokens\n"
    )
    write_json(
        files.environment,
        {
            "variant": variant,
            "size": "d32-L8",
            "seed": seed,
            "run_name": f"{variant}-d32-L8-s{seed}",
            "revision": "abc",
            "data_fingerprint": "f00",
            "config": {
                "name": "run",
                "seed": seed,
                "model.dim": 32,
                "model.num_layers": 8,
                "model.residual.name": variant,
                "budget": "40000 tokens",
            },
        },
    )
    for step in steps:
        files.append_metrics(position(step) | {"train/loss": loss + 1 / step, "optim/lr": 0.1})
    last = position(steps[-1]) | {"val/loss": loss}
    files.append_metrics(last)
    files.append_metrics(position(steps[-1]) | {"depth/entropy/03": 0.5})
    write_json(
        files.new_artifact("depth", f"step-{steps[-1]:06d}.json"),
        {"step": steps[-1], "reads": reads(variant)},
    )
    if state in ("finished", "diverged"):
        write_json(
            files.result,
            {key: value for key, value in last.items() if key != "time"} | {"params": 12345},
        )
    files.checkpoint.parent.mkdir(exist_ok=True)
    files.checkpoint.write_bytes(b"weights")
    files.set_status(state, step=steps[-1])
    return files


def reads(variant: str) -> list[dict]:
    """What a probe records of 16 sublayers: none for the baseline."""
    if variant == "baseline":
        return []
    sources = [["embedding", *(f"f{k}" for k in range(1, index + 1))] for index in range(17)]
    return [
        {
            "sublayer": len(names),
            "kind": "mlp",
            "sources": names,
            "weights": [1 / len(names)] * len(names),
        }
        for names in sources
    ]


def position(step: int, when: float = 1.7e9) -> dict[str, float]:
    return {
        "step": step,
        "time": when + step,
        "tokens": 100 * step,
        "flops": 1e6 * step,
        "seconds": 0.5 * step,
    }


def write_sweep(
    folder: Path, variants=("baseline", "full"), seeds=(0, 1), done: int = 99
) -> list[dict]:
    """A sweep of which ``done`` trials have finished."""
    plan = []
    for variant in variants:
        for seed in seeds:
            labels = {
                "variant": variant,
                "size": "d32-L8",
                "seed": seed,
                "run_name": f"{variant}-d32-L8-s{seed}",
            }
            params = {"model.residual": {"name": variant}, "seed": seed, "size": "small"}
            plan.append(
                {
                    "hash": f"{variant}{seed}",
                    "point": variant,
                    "num_params": 12345,
                    "params": params,
                    "flops": 1e9,
                    "tokens": 40000,
                    **labels,
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    for entry in plan[:done]:
        write_run(folder / "trials" / entry["hash"], variant=entry["variant"], seed=entry["seed"])
    return plan


def artifacts(client, run_id: str, folder: str | None = None) -> list[str]:
    """Paths of all files of a run; MLflow puts a time and a random part into the names of
    images.
    """
    found = []
    for item in client.list_artifacts(run_id, folder):
        found += (
            artifacts(client, run_id, item.path)
            if item.is_dir
            else [re.split("[+%]timestamp", item.path)[0]]
        )
    return sorted(found)


def dump(uri: str) -> dict[str, dict]:
    """Everything in a store that does not depend on when and where it was written: by run name,
    params, tags, all metric points, files, models.
    """
    import mlflow

    client = mlflow.MlflowClient(uri)
    runs = client.search_runs(
        [client.get_experiment_by_name("attnres").experiment_id], max_results=5000
    )
    names = {run.info.run_id: run.info.run_name for run in runs}
    result: dict[str, dict] = {}
    for run in runs:
        points = sorted(
            (key, m.step, m.value, 0 if key.startswith("factor/") else m.timestamp)
            for key in run.data.metrics
            for m in client.get_metric_history(run.info.run_id, key)
        )
        tags = {
            key: value
            for key, value in run.data.tags.items()
            if key
            not in ("attnres.id", "attnres.whole", "sweep_id", "mlflow.user", "mlflow.source.name")
        }
        if parent := tags.get("mlflow.parentRunId"):
            tags["mlflow.parentRunId"] = names[parent]
        assert run.info.run_name not in result, "a run is there twice"
        models = client.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
        )
        result[run.info.run_name] = {
            "params": run.data.params,
            "tags": tags,
            "points": points,
            "status": run.info.status,
            "files": artifacts(client, run.info.run_id),
            "models": [(model.name, model.status, model.tags, model.params) for model in models],
            "outputs": [output.step for output in run.outputs.model_outputs],
        }
    return result


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)
