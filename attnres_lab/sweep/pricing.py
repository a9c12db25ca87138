"""What a sweep will cost, before it runs: time from measured speed, disk, memory."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from attnres_lab.config import Budget, RunConfig, content_hash, to_yaml
from attnres_lab.errors import UserError
from attnres_lab.evaluation import nano
from attnres_lab.mixers.moe import MoEConfig
from attnres_lab.model.flops import forward_flops_per_token, num_params
from attnres_lab.runs.failures import REMEDY
from attnres_lab.runs.folder import RunFolder, read_json, write_json
from attnres_lab.runs.paths import cache_folder
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep.forecast import Outlook
from attnres_lab.sweep.launchers import REGISTRY, make_launcher
from attnres_lab.sweep.launchers.local import nvidia_smi
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.process import TRAIN
from attnres_lab.sweep.schema import Evaluation, SweepSpec
from attnres_lab.sweep.trials import Trial
from attnres_lab.training.environment import cpu_name, speed_key

#: FLOP/s assumed where nothing was measured: a guess, and shown as one.
GUESS = {"cpu": 1e10, "gpu": 2e13}


@dataclass(frozen=True)
class Device:
    """What trials run on: its name (empty: nobody knows yet), its memory in bytes, how many trials
    at a time, how many of them on one device, and how many devices one trial takes up.
    """

    kind: str
    name: str
    memory: float
    slots: int
    shared: int = 1
    leased: float = 1.0


@dataclass(frozen=True)
class Price:
    """Seconds of one trial, and what they rest on: ``measured``, ``nearest`` (another size or
    variant was measured) or ``guess``.
    """

    seconds: float
    basis: str


def _speeds(value: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """What is whole of a cache that anything may have happened to."""

    def fits(facts: Any) -> bool:
        if not isinstance(facts, dict) or not isinstance(facts.get("variant"), str):
            return False
        numbers = [facts.get("speed"), facts.get("params")]
        return all(isinstance(n, int | float) and n > 0 for n in numbers)

    return {
        device: {key: facts for key, facts in known.items() if fits(facts)}
        for device, known in value.items()
        if isinstance(known, dict)
    }


class Speeds:
    """FLOP/s of finished runs by device, kept in the cache folder for later plans."""

    def __init__(self, device: Device) -> None:
        self.path = cache_folder() / "speed.json"
        self.kind, self.name, self.shared = device.kind, device.name, device.shared
        self.all = _speeds(read_json(self.path) or {})

    @property
    def known(self) -> dict[str, dict[str, Any]]:
        """What was measured on the device that trials run on."""
        return self.all.get(self.name, {})

    def learn(self, runs: Iterable[tuple[Trial, RunFolder]]) -> None:
        """Add what finished runs measured, each to the device that it says it ran on; the first of
        them names an unknown one.
        """
        before = json.dumps(self.all)
        for trial, run in runs:
            speed = (read_json(run.result) or {}).get("perf/flops_per_second")
            where = (read_json(run.environment) or {}).get("device")
            if speed and where:
                self.name = self.name or where
                e = trial.entry
                facts = {"variant": e.variant, "params": e.num_params, "speed": speed}
                self.all.setdefault(where, {})[self._key(trial.config)] = facts
        if json.dumps(self.all) != before:
            with suppress(OSError):  # a cache that cannot be written is no reason to fail
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, self.all)

    def _key(self, c: RunConfig) -> str:
        """What decides a run's speed; trials that share a device have one of their own."""
        return f"{speed_key(c)} /{self.shared}" if self.shared > 1 else speed_key(c)

    def price(self, trial: Trial) -> Price:
        """The time of a trial by the speed of an equal one, else of the one nearest in size, its
        own variant first.
        """
        if trial.config.budget.unit == "seconds":
            return Price(trial.config.budget.value, "measured")
        flops = trial.entry.flops or 0.0
        if found := self.known.get(self._key(trial.config)):
            return Price(flops / found["speed"], "measured")
        if not self.known:
            return Price(flops / GUESS[self.kind], "guess")

        def distance(known: dict[str, Any]) -> tuple[bool, float]:
            ratio = known["params"] / trial.entry.num_params
            return known["variant"] != trial.entry.variant, abs(math.log(ratio))

        return Price(flops / min(self.known.values(), key=distance)["speed"], "nearest")

    def measure(self, trials: list[Trial], spec: SweepSpec, folder: SweepFolder) -> None:
        """Train a few steps of each size and variant that was never measured, by the launcher and
        with the resources of the sweep.
        """
        probes = {}
        keys = {t.entry.hash: self._key(t.config) for t in trials}
        unknown = {k: t for t in trials if (k := keys[t.entry.hash]) not in self.known}
        for trial in unknown.values():
            config = replace(
                trial.config,
                name="probe",
                budget=Budget(6, "steps"),
                data=replace(trial.config.data, val_tokens=trial.config.data.seq_len),
            )
            run = folder.trial(content_hash(config))
            run.path.mkdir(parents=True, exist_ok=True)
            run.write_config(to_yaml(config))
            probes[run.path.name] = (trial, run)
        with (
            folder.coordinate(),
            closing(make_launcher(replace(spec, function=TRAIN), folder.path)) as launcher,
        ):
            waiting, running = list(probes), 0
            while waiting or running:
                while waiting and running < launcher.slots:
                    running += 1
                    launcher.start(probes[waiting.pop()][1].path)
                running -= len(launcher.wait(0.2))
        self.learn(probes.values())
        for trial, run in probes.values():
            if run.status().state == "failed":
                raise UserError(
                    f"{trial.entry.run_name}: --measure: ({run.status().failure}) "
                    f"{run.status().message}; see {run.log}"
                )
            shutil.rmtree(run.path)


def device_of(spec: SweepSpec, trials: list[Trial], slots: int) -> Device:
    """The first GPU where trials use one, else this machine; on a cluster the device that the sweep
    names, of unknown memory.
    """
    r = spec.resources
    if not REGISTRY[spec.launcher.name].here:
        kind = "gpu" if r.devices else "cpu"
        return Device(kind, r.device or "", math.inf, slots, r.shared, r.leased)
    gpus = r.devices > 0 and any(t.config.train.device != "cpu" for t in trials)
    for name, megabytes in nvidia_smi("name", "memory.total") if gpus else ():
        return Device("gpu", name, float(megabytes) * 2**20, slots, r.shared, r.leased)
    memory = float(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        memory = min(memory, float(limit.read_text()))
    return Device("cpu", cpu_name(), memory, slots, leased=max(1.0, r.leased))


def memory_needed(c: RunConfig) -> float:
    """Bytes that training cannot do without: weights, gradients, two moments, fp32 logits with
    their gradient, the sublayers' outputs, and the tokens sent to experts.
    """
    tokens = c.train.micro * c.data.seq_len
    share = {"fsdp": c.train.world, "pipeline": c.train.world // c.train.replicas}.get(
        c.train.strategy, 1
    )
    logits = 2 * 4 * tokens * c.model.vocab_size
    layers = c.model.num_layers
    # of each expert that a token goes to, what goes in and what comes out
    routed = [2 * m.top_k for m in c.model.sublayers if isinstance(m, MoEConfig)]
    kept = 8 * layers + sum(routed)
    if c.model.activation_checkpointing:  # those of one layer at a time
        kept = layers + max(routed, default=0)
    return 16 * num_params(c.model).total / share + logits + 2 * tokens * c.model.dim * kept


def check_memory(trials: list[Trial], device: Device, spec: SweepSpec) -> None:
    """Refuse what cannot fit into ``device`` or into ``resources.memory_gb``; what a function of
    the user's needs is not known. Raises UserError that names the trial and the remedy.
    """
    if spec.function != TRAIN:
        return
    own = spec.resources.memory_gb
    limit, where = (own * 1e9, "resources.memory_gb") if own else (device.memory, device.name)
    together = min(device.slots, device.shared) if device.kind == "gpu" else device.slots
    remedy = "resources.devices higher" if device.kind == "gpu" else "launcher.workers lower"
    for trial in trials:
        need = memory_needed(trial.config)
        if need > limit:
            raise UserError(
                f"{trial.entry.run_name}: needs at least {need / 1e9:.1f} GB, {where} has "
                f"{limit / 1e9:.1f}; {REMEDY}"
            )
        if need * together > device.memory:
            raise UserError(
                f"{trial.entry.run_name}: {together} at a time need at least "
                f"{need * together / 1e9:.1f} GB; set {remedy}"
            )


def outlook(speeds: Speeds, plan: Plan) -> Callable[[Collection[Trial]], Outlook]:
    """What is known of a sweep's time beforehand, for the trials that there are by now: their
    seconds, where all were measured on the device, and those that the plan is expected to add.
    """
    prospect = plan.prospect()
    total = sum(p.expected for p in prospect)
    made: list[tuple[int, Outlook]] = []

    def now(trials: Collection[Trial]) -> Outlook:
        if not made or made[-1][0] != len(trials):
            part = 0.0 if plan.settled() or not total else max(0.0, 1 - len(trials) / total)
            later = [p for p in prospect if p.expected and part]
            prices = {t.entry.hash: speeds.price(t) for t in [*trials, *(p.trial for p in later)]}
            measured = all(price.basis == "measured" for price in prices.values())
            seconds = {hash: price.seconds for hash, price in prices.items()} if measured else {}
            coming = [(p.trial.entry, part * p.expected) for p in later]
            made[:] = [(len(trials), Outlook(seconds, coming))]
        return made[-1][1]

    return now


def scoring_flops(config: RunConfig, evaluation: Evaluation) -> tuple[float, list[str]]:
    """At most how many FLOPs the evaluation of a finished trial takes (every choice a whole
    sequence), and the tasks of which nobody knows the number of questions before their data are
    read.
    """
    unknown = [task for task in evaluation.tasks if task != "nano"]
    if "nano" not in evaluation.tasks:
        return 0.0, unknown
    questions = len(nano.TASKS) * min(evaluation.limit or nano.QUESTIONS, nano.QUESTIONS)
    tokens = questions * nano.CHOICES * config.data.seq_len
    return tokens * forward_flops_per_token(config.model, config.data.seq_len), unknown


def checkpoint_bytes(c: RunConfig) -> float:
    """Disk that a run's checkpoint takes: weights and two moments in fp32."""
    return 12.0 * num_params(c.model).total
