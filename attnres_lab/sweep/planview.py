"""``attnres sweep plan``: the trials and what they cost."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

from attnres_lab.runs.folder import DONE
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.runs.tuning import MOST
from attnres_lab.sweep.launchers import local_slots
from attnres_lab.sweep.plan import Planner, make_plan
from attnres_lab.sweep.pricing import (
    GUESS,
    Speeds,
    check_memory,
    checkpoint_bytes,
    device_of,
    wall_seconds,
)
from attnres_lab.sweep.report import SHOWN
from attnres_lab.sweep.space import sets
from attnres_lab.sweep.spec import SpecFile
from attnres_lab.sweep.survey import columns, duration, show
from attnres_lab.sweep.trials import Trial
from attnres_lab.sweep.tuning import EXPECTED, Tuned, Tuning

MARK = {"measured": "", "nearest": "~", "guess": "?"}


def print_plan(
    source: SpecFile, folder: SweepFolder, *, large: bool = False, measure: bool = False
) -> None:
    """Trials new, owed and done, with parameters, tokens, FLOPs, time, disk. Raises UserError for
    what cannot run.
    """
    planner = Planner(source)
    plan = make_plan(planner, folder, large=large)
    trials = plan.known()
    spec = source.spec
    device = device_of(spec, trials, local_slots(spec))
    check_memory(trials, device, spec)
    speeds = Speeds(device)
    speeds.learn((t, folder.trial(t.entry.hash)) for t in trials)
    states = {t.entry.hash: _state(t, folder) for t in trials}
    left = [t for t in trials if states[t.entry.hash] != "done"]
    if measure:
        speeds.measure(left, spec, folder)
    rows = [("trial", "run", "parameters", "tokens", "FLOPs", "time", "state", "point")]
    prices = {t.entry.hash: speeds.price(t) for t in trials}
    for e in [t.entry for t in trials][: SHOWN if sys.stdout.isatty() else None]:
        time = MARK[prices[e.hash].basis] + duration(prices[e.hash].seconds)
        flops = f"{e.flops:.2e}" if e.flops else ""
        rows.append(
            (
                e.hash,
                e.run_name,
                f"{e.num_params:,}",
                f"{e.tokens or 0:,}",
                flops,
                time,
                states[e.hash],
                show(e.params),
            )
        )
    if spec.question:
        print(f"{spec.question}\n")
    print(columns(rows))
    counts = {state: sum(s == state for s in states.values()) for state in ("new", "owed", "done")}
    total = sum(t.entry.flops or 0.0 for t in trials)
    print(
        ", ".join(
            [
                f"{len(trials)} trials",
                *(f"{n} {state}" for state, n in counts.items()),
                f"{total:.3g} FLOPs in all",
            ]
        )
    )
    if spec.adaptive:
        print(
            f"{spec.sampler.name} proposes {spec.trials} points in all, each with "
            f"{planner.space.replicates} seeds"
        )
    if isinstance(plan, Tuned) and left:
        print(*_prospect(plan.tuning, speeds), sep="\n")
    seconds = [prices[t.entry.hash].seconds for t in left]
    bases = {prices[t.entry.hash].basis for t in left}
    name = speeds.name or "the machines of this cluster"
    guess = f"a guess of {GUESS[device.kind]:.0e} FLOP/s (?): not measured on {name}; use --measure"
    speed = guess if "guess" in bases else f"speed measured on {name}"
    near = ", of the nearest size or variant where marked ~" if "nearest" in bases else ""
    hours = (
        f"{sum(seconds) / 3600:.2g} device-hours, {duration(wall_seconds(seconds, device.slots))} "
        f"with {device.slots} at a time"
    )
    print(f"to go: {hours}; by {speed}{near}" if left else "nothing to do")
    disk = sum(checkpoint_bytes(t.config) for t in left)
    free = shutil.disk_usage(folder.path if folder.path.exists() else source.file.path.parent).free
    print(
        f"checkpoints: {disk / 1e9:.2g} GB of {free / 1e9:.3g} GB "
        f"free{'; NOT ENOUGH' if disk > free else ''}"
    )
    if not spec.adaptive and any(
        key.startswith("model.residual") for axis in planner.space.axes for key in sets(axis)
    ):
        for warning in _no_gain(trials):
            print(f"warning: {warning}")


def _prospect(tuning: Tuning, speeds: Speeds) -> Iterator[str]:
    """What the whole sweep costs; the trials above are those that are known by now. No value of the
    tuned key changes a price.
    """
    points = tuning.prospect()
    for name, values in (("expected", EXPECTED), ("at most", float(MOST))):
        trials = flops = hours = 0.0
        for trial, measuring, tuned in points:
            runs = measuring + values * tuned
            trials += runs
            flops += runs * (trial.entry.flops or 0.0)
            hours += runs * speeds.price(trial).seconds / 3600
        yield (
            f"with tuning, {name}: {trials:.0f} trials, {flops:.3g} FLOPs, {hours:.2g} device-hours"
        )


def _no_gain(trials: list[Trial]) -> list[str]:
    """Why the runs of a comparison of residual connections cannot yield a compute-equivalent gain
    that carries weight.
    """
    sizes, seeds, variants = (
        {getattr(t.entry, key) for t in trials} for key in ("size", "seed", "variant")
    )
    found = (
        [f"{len(sizes)} size{'s' * (len(sizes) > 1)}: a compute-equivalent gain needs at least 3"]
        if len(sizes) < 3
        else []
    )
    found += ["one seed: noise and effect cannot be told apart"] if len(seeds) == 1 else []
    return found + (
        ["no baseline arm: there is nothing to compare with"] if "baseline" not in variants else []
    )


def _state(trial: Trial, folder: SweepFolder) -> str:
    run = folder.trial(trial.entry.hash)
    return "done" if run.status().state in DONE else "owed" if run.path.exists() else "new"
