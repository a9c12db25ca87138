"""How often what is asked of a gain errs: other levels, equivalence with a claimed gain, the gain
at one size, the largest size left out. python claims.py prints the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.fits.laws import Array
from analysis.gain.paired import Shift, around_mean, crossed_seeds, foretold, paired_shift

SPAN = np.log(30.0)  # of log compute, from the smallest size to the largest
COUNT = 20_000


@dataclass(frozen=True)
class World:
    """log L = -alpha (log C + log gain) + noise of ``sigma`` a run, at ``sizes`` with ``seeds``.

    ``tau``: what a seed does to the variant at all sizes alike, ``apart``: what a size does to it,
    both in sds of a pair; ``cost``: of the variant at the smallest size, half of the surplus at the
    largest; ``growth``: noise at the largest size over that at the smallest; ``fewer``: seeds that
    the largest lacks; ``tails``: degrees of freedom of the noise.
    """

    sizes: int = 5
    seeds: int = 1
    sigma: float = 0.005
    alpha: float = 0.055
    gain: float = 1.25
    tau: float = 0.0
    apart: float = 0.0
    cost: float = 1.0
    growth: float = 1.0
    fewer: int = 0
    tails: float = np.inf


#: Our nano studies: a pair's 0.019 nats at a loss of 2 (record 014).
NANO = World(sizes=12, sigma=0.0067, alpha=0.085)


@dataclass(frozen=True)
class Tables:
    """Log losses (tables, sizes, seeds) of both arms, log x of the baseline and what the variant's
    is more, (sizes,), and the log gain of each size's own, (tables, sizes).
    """

    base: Array
    variant: Array
    x: Array
    gap: Array
    own: Array
    crossed: bool

    def shift(self, sizes: int | None = None) -> Shift:
        """By the first ``sizes``; None: all."""
        cut = slice(None, sizes)
        arms = [np.nanmean(arm[:, cut], axis=-1) for arm in (self.base, self.variant)]
        found = paired_shift(self.x[cut], arms[0], (self.x + self.gap)[cut], arms[1])
        return crossed_seeds(found, self.corrected(found)[:, cut]) if self.crossed else found

    def corrected(self, shift: Shift) -> Array:
        """Log ratios at equal x, as a gain has them."""
        ratio: Array = self.base - self.variant
        return ratio - (shift.alpha[:, None] * self.gap)[..., None]


def tables(world: World, count: int = COUNT, seed: int = 0) -> Tables:
    """``count`` simulated tables."""
    rng = np.random.default_rng(seed)
    shape, pair = (2, count, world.sizes, world.seeds), world.sigma * np.sqrt(2)
    if np.isinf(world.tails):
        noise = rng.normal(size=shape)
    else:
        noise = rng.standard_t(world.tails, shape) * np.sqrt((world.tails - 2) / world.tails)
    noise *= world.sigma * np.geomspace(1.0, world.growth, world.sizes)[:, None]
    x = np.linspace(0.0, SPAN, world.sizes)
    gap = np.log1p((world.cost - 1) * np.linspace(1.0, 0.5, world.sizes))
    of_size = world.apart * pair * rng.normal(size=(count, world.sizes, 1))
    of_seed = world.tau * pair * rng.normal(size=(count, 1, world.seeds))
    base = -world.alpha * x[:, None] + noise[0]
    moved = (x + gap)[:, None] + np.log(world.gain)
    variant = -world.alpha * moved + noise[1] - of_size - of_seed
    if world.fewer:
        base[:, -1, -world.fewer :] = variant[:, -1, -world.fewer :] = np.nan
    own = np.log(world.gain) + of_size[..., 0] / world.alpha
    return Tables(base, variant, x, gap, own, crossed=world.tau > 0)


def share(limits: tuple[Array, Array], truth: Array | float) -> float:
    """Of intervals of the log gain that hold the truth."""
    return float(np.mean((limits[0] <= truth) & (truth <= limits[1])))


def levels(world: World, count: int = COUNT) -> list[float]:
    """Coverage at 80, 90, 95 and 99 %."""
    shift = tables(world, count).shift()
    return [share(shift.delta(p), np.log(world.gain)) for p in (0.8, 0.9, 0.95, 0.99)]


def equivalence(world: World, within: float, count: int = COUNT) -> list[float]:
    """Share of tables that say "within" of 1.25 with the truth at the lower and at the upper
    margin, "not below" at the lower; then both with the claim true.
    """
    found = []
    for gain in (1.25 / (1 + within), 1.25 * (1 + within), 1.25):
        p = tables(replace(world, gain=gain), count).shift().not_within(1.25, within)
        found.append([float(np.mean(one < 0.05)) for one in p])
    return [found[0][0], found[1][0], found[0][1], *found[2]]


def one_size(world: World, wrong: float = 1.0, count: int = COUNT) -> list[float]:
    """Coverage of the gain that all sizes share, and of that size's own, by the smallest size and
    an exponent ``wrong`` times the true one.
    """
    found = tables(world, count)
    alpha = world.alpha * wrong
    ratio = found.base[:, 0] - found.variant[:, 0] - alpha * found.gap[0]
    value, half = around_mean(ratio / alpha, 0.95)
    limits = value - half, value + half
    return [share(limits, np.log(world.gain)), share(limits, found.own[:, 0])]


def largest(world: World, loss: float = 0.0, count: int = COUNT) -> list[float]:
    """Share of tables whose largest size is not foretold (p < .05), where the variant's log loss
    there is higher by ``loss``; coverage of the interval of the other sizes.
    """
    found = tables(world, count)
    found.variant[:, -1] += loss
    rest = found.shift(world.sizes - 1)
    corrected = found.corrected(rest)
    pairs = np.sum(~np.isnan(corrected), axis=-1)
    p = foretold(np.nanmean(corrected, axis=-1), pairs)
    return [float(np.mean(p < 0.05)), share(rest.delta(), np.log(world.gain))]


WORLDS = {
    **{f"{n} sizes, 1 seed": World(n) for n in (3, 5, 8, 12)},
    **{f"{n} sizes, 3 nested seeds": World(n, 3) for n in (3, 5, 8, 12)},
    "12 sizes, 1 seed, nano noise": NANO,
    "14 sizes, 3 seeds, nano noise": replace(NANO, sizes=14, seeds=3),
    "5 sizes, 3 crossed seeds, tau 1": World(seeds=3, tau=1.0),
    "5 sizes, 3 seeds, sizes differ by a pair's sd": World(seeds=3, apart=1.0),
    "5 sizes, the variant costs 20 to 10 % more": World(cost=1.2),
    "5 sizes, Student noise, 4 degrees of freedom": World(tails=4.0),
    "5 sizes, noise falls to a third": World(growth=1 / 3),
    "5 sizes, noise grows threefold": World(growth=3.0),
}
FEWER = {
    "5 sizes, 3 seeds, the largest has 1": World(seeds=3, fewer=2),
    "8 sizes, 3 seeds, the largest has 1": World(8, 3, fewer=2),
    "8 sizes, 3 seeds, the largest has 1, sizes differ": World(8, 3, fewer=2, apart=1.0),
}


def show(head: Sequence[str], rows: Sequence[tuple[str, list[float]]]) -> None:
    """A table of Markdown."""
    print("\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name, values in rows:
        print("| " + " | ".join([name, *(f"{value:.3f}" for value in values)]) + " |")


def _one_size() -> list[tuple[str, list[float]]]:
    three = World(seeds=3)
    rows = [(f"{k} seeds", one_size(replace(three, seeds=k))) for k in (2, 3, 5)]
    for name, changes in (
        ("sizes differ by a pair's sd", {"apart": 1.0}),
        ("the variant costs 20 to 10 % more", {"cost": 1.2}),
        ("Student noise, 4 degrees of freedom", {"tails": 4.0}),
    ):
        rows.append((f"3 seeds, {name}", one_size(replace(three, **changes))))
    for wrong in (0.8, 0.9, 1.1):
        rows.append((f"3 seeds, exponent {wrong:g} times the true one", one_size(three, wrong)))
    return rows


if __name__ == "__main__":
    show(("world", "80 %", "90 %", "95 %", "99 %"), [(n, levels(w)) for n, w in WORLDS.items()])
    head = ("world, margin", "within: truth at the lower margin", "within: at the upper")
    head = (*head, "not below: at the lower", "within, claim true", "not below, claim true")
    some = {n: w for n, w in WORLDS.items() if w.sizes != 3}
    show(
        head,
        [
            (f"{name}, {within:.0%}", equivalence(world, within))
            for name, world in some.items()
            for within in (0.05, 0.1)
        ],
    )
    show(("at one size", "the gain of all sizes", "the size's own"), _one_size())
    head = ("largest left out", "p < .05, it is as the others", "the others' interval")
    rows = []
    for name, world in (some | FEWER).items():
        seen = [largest(world, loss)[0] for loss in (0.01, 0.03)]
        rows.append((name, [*largest(world), *seen]))
    show((*head, "p < .05, .010 higher", "p < .05, .030 higher"), rows)
