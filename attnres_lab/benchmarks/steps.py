"""The seconds of a training step of each variant and size of a sweep, on the device that trained
it: steps of all variants in turn, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import datetime
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from attnres_lab.benchmarks.timing import interleave
from attnres_lab.config import ImagesConfig, RunConfig, load
from attnres_lab.errors import UserError
from attnres_lab.runs.folder import read_json, write_json
from attnres_lab.runs.sweep import Entry, SweepFolder
from attnres_lab.training.environment import cpu_name, speed_key
from attnres_lab.training.module import LitTransformer
from attnres_lab.training.trainer import in_bf16


def step_of(config: RunConfig, device: torch.device) -> Callable[[], float]:
    """One optimiser step of a run, its micro-batches, clipping and precision included, on random
    data of the run's shape; returns its seconds.
    """
    t, module = config.train, LitTransformer(config)
    model = module.model.to(device)
    if t.compile:
        model.compile()
    optimizer, batch = module.make_optimizer(), _batch(config, device)
    bf16 = in_bf16(t, device.type)

    def precision() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()

    def step() -> float:
        torch.set_num_threads(t.threads)
        _wait(device)
        start = time.perf_counter()
        for _ in range(t.accumulate):
            with precision():
                loss = module.loss(batch)
            (loss / t.accumulate).backward()  # type: ignore[no-untyped-call]
        module.clip(config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        _wait(device)
        return time.perf_counter() - start

    return step


def _batch(config: RunConfig, device: torch.device) -> Any:
    draw, rows = torch.Generator().manual_seed(0), config.train.micro
    if isinstance(config.task, ImagesConfig):
        image = config.task.image
        sides = (rows, image.channels, image.size, image.size)
        pixels = torch.randint(0, 256, sides, generator=draw, dtype=torch.uint8)
        labels = torch.randint(0, image.classes, (rows,), generator=draw)
        return pixels.to(device), labels.to(device)
    shape = (rows, config.data.seq_len + 1)
    return torch.randint(0, config.model.vocab_size, shape, generator=draw).to(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(folder: SweepFolder, repeats: int) -> list[dict[str, Any]]:
    """Time the steps of a sweep's finished trials and write ``step_seconds.json`` beside them: a
    row for each variant, size and whatever else decides the speed, with the hashes of its trials.

    Raises UserError for a sweep that runs now, has no finished trial, or whose trials ran
    elsewhere.
    """
    if holder := folder.holder():
        raise UserError(
            f"{folder.path}: process {holder['pid']} runs it; measure when it has ended"
        )
    groups, device, name = _groups(folder)
    rows: list[dict[str, Any]] = []
    for size, arms in groups.items():  # one size at a time: all variants of it are in memory
        works = {key: step_of(config, device) for key, (config, _) in arms.items()}
        times = interleave(works, repeats)
        for key, (config, entries) in arms.items():
            low, mid, high = statistics.quantiles(times[key], n=4)
            rows.append(
                {
                    "variant": config.variant,
                    "size": size,
                    "step_seconds": mid,
                    "quartile1": low,
                    "quartile3": high,
                    "tokens_per_step": config.tokens_per_step,
                    "trials": [entry.hash for entry in entries],
                }
            )
    about = {
        "device": name,
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "repeats": repeats,
        "load": os.getloadavg()[0],
    }
    write_json(folder.timed, {**about, "rows": rows})
    return rows


Arms = dict[str, tuple[RunConfig, list[Entry]]]


def _groups(folder: SweepFolder) -> tuple[dict[str, Arms], torch.device, str]:
    """By size, and what decides the speed, a config and the trials that it stands for; the device,
    and its name.
    """
    groups: dict[str, Arms] = {}
    where: set[str] = set()
    for entry in folder.plan():
        run = folder.trial(entry.hash)
        facts = read_json(run.environment)
        if run.status().state != "finished" or not facts:
            continue
        config = load(run.config)
        if config.train.world > 1:
            raise UserError(
                f"{entry.run_name}: trained on {config.train.world} devices; steps are timed on one"
            )
        where.add(str(facts.get("device")))
        arms = groups.setdefault(entry.size, {})
        arms.setdefault(speed_key(config), (config, []))[1].append(entry)
    if not groups:
        raise UserError(f"{folder.path}: no finished trial of training to time")
    gpu = torch.cuda.is_available() and all(
        config.train.device != "cpu" for arms in groups.values() for config, _ in arms.values()
    )
    name = torch.cuda.get_device_name(0) if gpu else cpu_name()
    if where != {name}:
        raise UserError(
            f"{folder.path}: its trials ran on {', '.join(sorted(where))}, this is {name}; measure "
            "there"
        )
    return groups, torch.device("cuda" if gpu else "cpu"), name


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table, each beside the baseline of its size where there is one."""
    text = [f"{'size':18} {'variant':16} {'step':>10} {'quartiles':>21} {'ratio':>6}"]
    for row in rows:
        base = [r for r in rows if (r["variant"], r["size"]) == ("baseline", row["size"])]
        ratio = f"{row['step_seconds'] / base[0]['step_seconds']:6.3f}" if len(base) == 1 else ""
        low, mid, high = (1e3 * row[key] for key in ("quartile1", "step_seconds", "quartile3"))
        text.append(
            f"{row['size']:18} {row['variant']:16} {mid:8.2f}ms {low:9.2f} - {high:7.2f}ms {ratio}"
        )
    return text
