"""``attnres sweep plan``: the trials and what they cost."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from attnres_lab.data import prepared
from attnres_lab.errors import UserError
from attnres_lab.runs.folder import DONE
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep import scoring
from attnres_lab.sweep.checks import changes, check_named
from attnres_lab.sweep.forecast import schedule
from attnres_lab.sweep.known import bring
from attnres_lab.sweep.launchers import expected_slots
from attnres_lab.sweep.plan import Prospect, Tuned, make_plan
from attnres_lab.sweep.pricing import (
    GUESS,
    Device,
    Price,
    Speeds,
    check_memory,
    checkpoint_bytes,
    device_of,
    scoring_flops,
)
from attnres_lab.sweep.process import TRAIN
from attnres_lab.sweep.report import SHOWN
from attnres_lab.sweep.schema import Evaluation, SweepSpec
from attnres_lab.sweep.space import sets
from attnres_lab.sweep.spec import SpecFile
from attnres_lab.sweep.summary import columns, duration, show
from attnres_lab.sweep.trials import Trial

MARK = {"measured": "", "nearest": "~", "guess": "?"}
#: Of a trial that a function of the user's runs.
UNKNOWN = "their parameters, tokens, FLOPs, time, memory and disk"


def print_plan(
    source: SpecFile, folder: SweepFolder, *, large: bool = False, measure: bool = False
) -> None:
    """Trials new, pending and done, with parameters, tokens, FLOPs, time, disk, where our training
    runs them. Raises UserError for what cannot run; for want of memory after all is printed.
    """
    spec, plan = source.spec, make_plan(source, folder, large=large)
    brought = bring(source, folder)
    trials = plan.known()
    check_named(trials)
    notes = list(changes(source, folder, trials))
    if brought and folder.holder() is None:  # then status and report have something to say
        plan.write(folder, trials)
    device = device_of(spec, trials, expected_slots(spec))
    speeds = Speeds(device)
    speeds.learn((t, folder.trial(t.entry.hash)) for t in trials)
    states = {t.entry.hash: _state(t, folder, spec) for t in trials}
    left = [t for t in trials if states[t.entry.hash] in ("new", "pending")]
    ours = spec.function == TRAIN  # what another function takes, nobody here knows
    if measure and ours:
        check_memory(trials, device, spec)
        speeds.measure(left, spec, folder)
    prices = {t.entry.hash: speeds.price(t) for t in trials} if ours else {}
    if spec.question:
        print(f"{spec.question}\n")
    print(columns(_rows(trials, states, prices, priced=ours)))
    print(_counts(trials, Counter(states.values()), priced=ours))
    if spec.adaptive:
        print(
            f"{spec.sampler.name} proposes {spec.trials} points in all, each with "
            f"{source.space.replicates} seeds"
        )
    if (isinstance(plan, Tuned) and left) or spec.adaptive:
        what = "with what is proposed" if spec.adaptive else "with tuning"
        print(*_prospect(what, plan.prospect(), speeds if ours else None, device), sep="\n")
    if not left:
        print("nothing to do")
    elif ours:
        todo, first = [prices[t.entry.hash] for t in left], spec.order == "smallest"
        print(f"to go: {_cost(todo, device, speeds.name, smallest=first)}")
    if spec.eval and (left or spec.adaptive):
        print(*_scoring(spec.eval, plan.prospect(), speeds, device), sep="\n")
    print(*(f"note: {line}\n" for line in notes), sep="", end="")
    if not ours:
        print(f"not priced: {spec.function} runs the trials; {UNKNOWN} are not known")
    else:
        print(_passes(trials), end="")
        print(_disk(left, folder.path if folder.path.exists() else source.file.path.parent))
    varied = [key for axis in source.space.axes for key in sets(axis)]
    if not spec.adaptive and any(key.startswith("model.residual") for key in varied):
        for warning in _no_gain(trials):
            print(f"warning: {warning}")
    check_memory(trials, device, spec)  # last: a plan for a larger machine is read on this one


def _rows(
    trials: list[Trial], states: Mapping[str, str], prices: Mapping[str, Price], *, priced: bool
) -> list[tuple[str, ...]]:
    """A line for each trial, on a terminal the first ones; what it costs only where it is
    ``priced``.
    """
    costs = ("parameters", "tokens", "FLOPs", "time") if priced else ()
    rows = [("trial", "run", *costs, "state", "point")]
    for e in [t.entry for t in trials][: SHOWN if sys.stdout.isatty() else None]:
        if priced:
            time = MARK[prices[e.hash].basis] + duration(prices[e.hash].seconds)
            flops = f"{e.flops:.2e}" if e.flops else ""
            costs = (f"{e.num_params:,}", f"{e.tokens or 0:,}", flops, time)
        rows.append((e.hash, e.run_name, *costs, states[e.hash], show(e.params)))
    return rows


def _counts(trials: list[Trial], counts: Counter[str], *, priced: bool) -> str:
    total = sum(t.entry.flops or 0.0 for t in trials)
    parts = [f"{counts[state]} {state}" for state in ("new", "pending", "done")]
    if imported := counts["imported"]:
        parts[-1] = f"{counts['done'] + imported} done ({imported} imported)"
    parts += [f"{total:.3g} FLOPs in all"] if priced else []
    return ", ".join([f"{len(trials)} trials", *parts])


def _disk(left: list[Trial], place: Path) -> str:
    needed = sum(checkpoint_bytes(t.config) for t in left)
    free = shutil.disk_usage(place).free
    short = "; NOT ENOUGH" if needed > free else ""
    return f"checkpoints: {needed / 1e9:.2g} GB of {free / 1e9:.3g} GB free{short}"


def _passes(trials: list[Trial]) -> str:
    """A line: how often the longest trial sees its data; empty where that is no question."""
    longest = max(trials, key=lambda t: t.entry.tokens or 0, default=None)
    if longest is None or not longest.entry.tokens or longest.config.task.name != "language":
        return ""
    try:
        corpus = prepared(longest.config.data)
    except UserError:  # the run says it, with its place
        return ""
    if corpus is None:
        return "data: not prepared yet, so passes over them are not known\n"
    passes = longest.entry.tokens / corpus.train_tokens
    return f"data: at most {passes:.2g} passes over {corpus.train_tokens:,} training tokens\n"


def _cost(prices: list[Price], device: Device, name: str, *, smallest: bool = False) -> str:
    """The time of all, and what it rests on."""
    seconds, bases = [price.seconds for price in prices], {price.basis for price in prices}
    name = name or "the machines of this cluster"
    guess = f"a guess of {GUESS[device.kind]:.0e} FLOP/s (?): not measured on {name}; use --measure"
    speed = guess if "guess" in bases else f"speed measured on {name}"
    near = ", of the nearest size or variant where marked ~" if "nearest" in bases else ""
    each = "" if device.leased == 1 else f" of {device.leased:g} devices a trial"
    wall = duration(schedule(sorted(seconds, reverse=not smallest), device.slots))
    return (
        f"{sum(seconds) * device.leased / 3600:.2g} device-hours{each}, {wall} with "
        f"{device.slots} at a time; "
        f"by {speed}{near}"
    )


def _prospect(
    what: str, prospect: list[Prospect], speeds: Speeds | None, device: Device
) -> Iterator[str]:
    """What the whole sweep costs; the trials above are those that are known by now. Without
    ``speeds`` their number alone.
    """
    for name in ("expected", "most"):
        trials = flops = hours = 0.0
        for p in prospect:
            runs = getattr(p, name)
            trials += runs
            flops += runs * (p.trial.entry.flops or 0.0)
            hours += runs * (speeds.price(p.trial).seconds if speeds else 0) * device.leased / 3600
        at = {"most": "at most"}.get(name, name)
        cost = f", {flops:.3g} FLOPs, {hours:.2g} device-hours" if speeds else ""
        yield f"{what}, {at}: {trials:.0f} trials{cost}"


def _scoring(
    asked: Evaluation, prospect: list[Prospect], speeds: Speeds, device: Device
) -> Iterator[str]:
    """What the evaluations cost at most, on top of training."""
    flops = hours = 0.0
    unknown = list[str]()
    for p in prospect:
        once, unknown = scoring_flops(p.trial.config, asked)
        flops += p.expected * once
        if p.trial.entry.flops:
            per_flop = speeds.price(p.trial).seconds / p.trial.entry.flops
            hours += p.expected * once * per_flop * device.leased / 3600
    if flops:
        yield (
            f"and evaluations (nano): at most {flops:.3g} FLOPs, about {hours:.2g} device-hours at "
            "the speed of training"
        )
    if unknown:
        yield (
            f"and evaluations ({', '.join(unknown)}): not priced, the number of their questions is "
            "not known before their data are read; eval.limit bounds it"
        )


def _no_gain(trials: list[Trial]) -> list[str]:
    """Why the runs of a comparison of residual connections cannot yield a compute-equivalent gain
    that carries weight.
    """
    keys = ("size", "seed", "variant")
    sizes, seeds, variants = ({getattr(t.entry, key) for t in trials} for key in keys)
    few = f"{len(sizes)} size{'s' * (len(sizes) > 1)}: a compute-equivalent gain needs at least 3"
    warnings = {
        few: len(sizes) < 3,
        "one seed: noise and effect cannot be told apart": len(seeds) == 1,
        "no baseline arm: there is nothing to compare with": "baseline" not in variants,
    }
    return [warning for warning, holds in warnings.items() if holds]


def _state(trial: Trial, folder: SweepFolder, spec: SweepSpec) -> str:
    run = folder.trial(trial.entry.hash)
    status = scoring.status(run, spec)
    if status.state in DONE:
        return "imported" if status.imported else "done"
    return "pending" if run.path.exists() else "new"
