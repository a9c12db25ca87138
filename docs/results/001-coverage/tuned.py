"""Coverage of the gain's interval under the tuned protocol, end to end: every simulated cell asks
the functions that real sweeps ask. python tuned.py [tables] prints the table; its last row goes
through a sweep file, its planner and the table of its trials, with a tenth of the tables.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from analysis import compute_equivalent_gain
from analysis.gain.paired import Array, Shift, paired_shift
from attnres_lab.runs.tuning import Choice, along, next_steps, value_at, vertex
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.spec import load_spec
from attnres_lab.sweep.trials import Trial
from attnres_lab.sweep.tuning import Tuning

START, FACTOR, SIZES, SEEDS = 1.2e-2, 2.0, 5, 5  # SEEDS: fresh ones, at the chosen rate
SPAN = np.log(30.0)  # of log compute, from the smallest size to the largest


@dataclass(frozen=True)
class World:
    """L = level exp(-alpha (log C + log gain)) + curvature (octaves from the best rate)^2 + noise.

    The best rate falls by ``fall`` octaves over the sizes and scatters by .1 octave from cell to
    cell; the variant's lies ``apart`` octaves lower. ``sigma``: sd of a run in nats.
    """

    alpha: float
    gain: float
    sigma: tuple[float, float]  # baseline, variant
    curvature: tuple[float, float]
    apart: float
    fall: float = 1.2
    level: float = 2.2


WORLDS = {
    # the paper: exponent and gain of its Table 2, the seed noise of 124M models; its bowls unknown
    "P": World(0.055, 1.25, (0.002, 0.002), (0.012, 0.012), 0.5),
    "P2": World(0.055, 1.25, (0.002, 0.002), (0.012, 0.024), 0.5),
    # our nano records: noise and bowls of 002, exponent of 012
    "N": World(0.08, 1.1, (0.014, 0.014), (0.05, 0.05), 1.0),
    "N0": World(0.08, 1.0, (0.014, 0.021), (0.05, 0.05), 1.0),
}
Loss = Callable[[float], float]


def table(world: World, protocol: str, rng: np.random.Generator) -> tuple[Array, Array, int]:
    """(log losses (2 arms, sizes), log compute (sizes), tuning runs) of one simulated sweep."""
    x = np.linspace(0, SPAN, SIZES)
    params = np.exp(x / 2)
    offset = rng.uniform(-1, 1)  # nobody knows where to start
    best = offset - world.fall * x / SPAN + 0.1 * rng.normal(size=(2, SIZES))
    best[1] -= world.apart
    gains = np.array([0.0, np.log(world.gain)])
    floor = world.level * np.exp(-world.alpha * (x + gains[:, None]))

    def run(arm: int, size: int, rate: float) -> float:
        octaves = np.log2(rate / START) - best[arm, size]
        noise = world.sigma[arm] * rng.normal()
        return float(floor[arm, size] + world.curvature[arm] * octaves**2 + noise)

    runs = [[partial(run, arm, size) for size in range(SIZES)] for arm in range(2)]
    steps, losses, spent = _steps(runs, best, params, protocol)
    if protocol == "minimum of the parabola":
        measured = np.array(losses)
    else:
        rates = [[value_at(START, FACTOR, step) for step in row] for row in steps]
        measured = np.array(
            [
                [
                    np.mean([loss(rate) for _ in range(SEEDS)])
                    for loss, rate in zip(*arm, strict=True)
                ]
                for arm in zip(runs, rates, strict=True)
            ]
        )
    return np.log(measured), x, spent


def _steps(
    runs: list[list[Loss]], best: Array, params: Array, protocol: str
) -> tuple[list[list[float]], list[list[float]], int]:
    """Steps at which the cells are measured, the losses at their minima, and the tuning runs."""
    if protocol == "best rates known":
        return best.tolist(), [], 0
    if protocol == "one shared rate":
        step, _, spent = tune(runs[0][0])
        return [[step] * SIZES] * 2, [], spent
    sizes = 3 if protocol == "law of the 3 smallest sizes" else SIZES
    found = [[tune(cell) for cell in row[:sizes]] for row in runs]
    spent = sum(cell[2] for row in found for cell in row)
    steps = [[cell[0] for cell in row] for row in found]
    if sizes < SIZES:
        steps = [
            row + [along(params[:sizes], row, size) for size in params[sizes:]] for row in steps
        ]
    if protocol == "the baseline's vertices for both arms":
        steps = [steps[0]] * 2
    return steps, [[cell[1] for cell in row] for row in found], spent


def tune(loss: Loss) -> tuple[float, float, int]:
    """(Step, loss at the parabola's minimum, runs) of one cell, one tuning seed."""
    losses: dict[int, float] = {}
    while not isinstance(asked := next_steps(losses), Choice):
        losses |= {step: loss(value_at(START, FACTOR, step)) for step in asked}
    near = round(asked.step)
    minimum = min(losses.values())
    for middle in (near - 1, near, near + 1):  # the lowest, whose vertex it is
        if losses.get(middle) == minimum and {middle - 1, middle + 1} <= set(losses):
            around = (middle - 1, middle, middle + 1)
            minimum = vertex(around, tuple(losses[step] for step in around)).minimum
            break
    return asked.step, minimum, len(losses)


def simulate(world: World, protocol: str, count: int, seed: int = 0) -> tuple[Shift, float]:
    """Estimates of ``count`` sweeps, and the tuning runs of a cell."""
    rng = np.random.default_rng(seed)
    tables = [table(world, protocol, rng) for _ in range(count)]
    y, x = np.array([t[0] for t in tables]), np.array([t[1] for t in tables])
    tuning = float(np.mean([t[2] for t in tables])) / (2 * SIZES)
    return paired_shift(x, y[:, 0], x, y[:, 1]), tuning


#: Sizes whose compute spans a factor of 30, seeds of their own at each.
SWEEP = f"""
name: simulated
base: tiny
space:
  size:
    a: {{model.dim: 16, budget: 50 steps}}
    b: {{model.dim: 24, budget: 60 steps}}
    c: {{model.dim: 36, budget: 75 steps}}
    d: {{model.dim: 52, budget: 95 steps}}
    e: {{model.dim: 76, budget: 120 steps}}
  model.residual: [baseline, full]
  seed: {{each: {SEEDS}}}
tune: {{key: optim.lr, start: {START}, factor: {FACTOR}}}
"""


def losses(world: World, smallest: float, rng: np.random.Generator) -> Callable[[Trial], float]:
    """What the trials of one simulated sweep end with; above two octaves from the best rate they
    diverge. ``smallest``: FLOPs of the smallest run.
    """
    offset = rng.uniform(-1, 1)
    scatter: dict[tuple[str, int], float] = defaultdict(lambda: 0.1 * rng.normal())

    def loss(trial: Trial) -> float:
        arm = int(trial.entry.variant != "baseline")
        x = np.log((trial.entry.flops or 0.0) / smallest)
        best = offset - world.fall * x / SPAN - world.apart * arm + scatter[trial.entry.size, arm]
        octaves = np.log2(trial.config.optim.lr / START) - best
        if octaves > 2:
            return float("inf")
        floor = world.level * np.exp(-world.alpha * (x + arm * np.log(world.gain)))
        noise = world.sigma[arm] * rng.normal()
        return float(floor + world.curvature[arm] * octaves**2 + noise)

    return loss


def through_sweeps(world: World, count: int, seed: int = 0) -> tuple[Shift, float]:
    """As ``simulate``: the planner of a sweep under ``tune`` asks for its trials until there are no
    more, and the measuring ones are the table of ``compute_equivalent_gain``. Full costs what it
    costs.
    """
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as folder:
        (path := Path(folder) / "sweep.yaml").write_text(SWEEP)
        tuning = Tuning(Plan(load_spec(path)))
    smallest = min(t.entry.flops or 0.0 for t in tuning.trials(lambda _: None))
    shifts, spent = [], 0
    for _ in range(count):
        loss, results = losses(world, smallest, rng), dict[str, float]()
        while new := [t for t in tuning.trials(results.get) if t.entry.hash not in results]:
            results |= {trial.entry.hash: loss(trial) for trial in new}
        entries = [trial.entry for trial in tuning.trials(results.get)]
        spent += sum(e.tuning for e in entries)
        rows = [
            {"variant": e.variant, "size": e.size, "seed": e.seed, "flops": e.flops}
            | {"val/loss": results[e.hash]}
            for e in entries
            if not e.tuning
        ]
        shifts.append(compute_equivalent_gain(pd.DataFrame(rows), "full").shift)
    stacked = {f.name: np.array([getattr(s, f.name) for s in shifts]) for f in fields(Shift)}
    return Shift(**stacked), spent / (count * 2 * SIZES)


def summary(world: World, shift: Shift) -> tuple[float, float, float]:
    """(Bias in per cent, coverage, median half-width in per cent)."""
    truth = np.log(world.gain)
    low, high = shift.delta()
    covered = float(np.mean((low <= truth) & (truth <= high)))
    bias = 100 * float(np.expm1(np.median(shift.theta) - truth))
    return bias, covered, 100 * float(np.median(np.expm1((high - low) / 2)))


THROUGH = "each cell's own vertex, through the planner"
PROTOCOLS = (
    "one shared rate",
    "the baseline's vertices for both arms",
    "each cell's own vertex",
    "law of the 3 smallest sizes",
    "minimum of the parabola",
    "best rates known",
    THROUGH,
)


def main(count: int) -> None:
    """Print the table."""
    print("| protocol | tuning runs a cell | " + " | ".join(WORLDS) + " |")
    print("|---" * (2 + len(WORLDS)) + "|")
    for protocol in PROTOCOLS:
        cells, runs = [], 0.0
        for world in WORLDS.values():
            if protocol == THROUGH:
                shift, runs = through_sweeps(world, count // 10)
            else:
                shift, runs = simulate(world, protocol, count)
            bias, covered, half = summary(world, shift)
            cells.append(f"{bias:+.1f} / {covered:.3f} / {half:.1f}")
        print(f"| {protocol} | {runs:.1f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
