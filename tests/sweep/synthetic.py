"""Trials without training, for tests of the engine."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import time
from pathlib import Path

from attnres_lab.config import RunConfig, content_hash
from attnres_lab.runs.folder import RunFolder, write_atomic


def quick(config: RunConfig, folder: Path) -> dict[str, float]:
    """A loss that depends on the config alone."""
    return {
        "val/loss": 1.0 + abs(config.optim.lr - 3e-3) * 100 + 1 / config.model.dim,
        "seconds": 0.01,
        "device_seconds": 0.01,
    }


def bare(config: RunConfig, folder: Path) -> float:
    """As Optuna's objectives return their value."""
    return 1.0


def chain(config: RunConfig, folder: Path) -> None:
    """Steps that each hash the state of the one before, with a checkpoint after each: what training
    is to the engine.

    ``witness`` beside the trials records each start, and any start while another process still
    worked on the same trial.
    """
    run = RunFolder(folder)
    witness = folder.parent.parent / "witness.txt"
    alone = open(folder / "alone", "w")  # noqa: SIM115
    try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _write(witness, f"overlap {folder.name}")
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    state = (
        json.loads(run.checkpoint.read_text())
        if run.checkpoint.exists()
        else {"step": 0, "value": content_hash(config)}
    )
    _write(
        witness,
        f"start {folder.name} {state['step']} {os.getpid()} "
        f"{os.environ.get('CUDA_VISIBLE_DEVICES')}",
    )
    run.truncate_metrics(state["step"])
    run.set_status("running", step=state["step"])
    run.checkpoint.parent.mkdir(exist_ok=True)
    pause = float(os.environ.get("SYNTHETIC_SECONDS", "0.02"))
    while state["step"] < (config.steps or 0):
        if stop or run.stop.exists():
            run.set_status(
                "pruned" if run.stop.exists() and run.stop.read_text() == "prune" else "stopped",
                step=state["step"],
            )
            return
        time.sleep(pause)
        state = {
            "step": state["step"] + 1,
            "value": hashlib.sha256(state["value"].encode()).hexdigest(),
        }
        loss = loss_at(config, state["step"])
        run.append_metrics({"step": state["step"], "time": time.time(), "val/loss": loss})
        write_atomic(run.checkpoint, json.dumps(state).encode())
        run.beat()
    write_atomic(
        run.result,
        json.dumps(
            {
                "val/loss": loss_at(config, state["step"]),
                "step": state["step"],
                "value": state["value"],
                "seconds": 0.1,
            }
        ).encode(),
    )
    _write(witness, f"finish {folder.name}")
    run.set_status("finished", step=state["step"])


def four(config: RunConfig, folder: Path) -> dict[str, float]:
    """Ends once four trials have begun, so that four are at work at a time."""
    from tests.sweep.services import wait_for

    witness = folder.parent.parent / "witness.txt"
    _write(witness, f"start {folder.name} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
    wait_for(lambda: witness.read_text().count("start") >= 4, 300)
    _write(witness, f"finish {folder.name}")
    return {"val/loss": 1.0}


def loss_at(config: RunConfig, step: int) -> float:
    """A curve that falls with steps; higher for a worse learning rate."""
    return 1 / step + abs(config.optim.lr - 3e-3) * 100 + 0.001 * config.seed


def expected(config: RunConfig) -> str:
    """The value a ``chain`` that was never interrupted ends with."""
    value = content_hash(config)
    for _ in range(config.steps or 0):
        value = hashlib.sha256(value.encode()).hexdigest()
    return value


def fails(config: RunConfig, folder: Path) -> dict[str, float]:
    """Seed 0 works; each other seed fails in its own way, the first time or always."""
    again = (folder / "tried").exists()
    (folder / "tried").touch()
    if config.seed == 1:
        raise ValueError("a bug")
    if config.seed == 2:
        raise MemoryError
    if config.seed == 3 and not again:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == 4 and not again:
        raise ConnectionError("the network is away")
    if config.seed == 5:
        RunFolder(folder).set_status("diverged", message="loss is nan", step=3)
        return {}
    if config.seed == 6 and not again:
        os._exit(3)
    return {"val/loss": 1.0}


def _write(path: Path, line: str) -> None:
    with open(path, "a") as file:
        file.write(line + "\n")


def spends_a_hundred(config: RunConfig, folder: Path) -> dict[str, float]:
    """Whatever the budget, the FLOPs of a hundred steps."""
    return {"val/loss": 1.0, "flops": 100.0 * config.tokens_per_step * config.flops_per_token}
