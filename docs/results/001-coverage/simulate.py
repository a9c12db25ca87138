"""How often the 95 % intervals of a compute-equivalent gain cover it, by simulation. Run as a
script it writes the tables of README.md beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analysis.fits.laws import Array
from analysis.gain.alternatives import SeparateLaws, unpaired_bootstrap
from analysis.gain.paired import POOL_ABOVE, Shift, paired_shift, pool_seeds

README = Path(__file__).parent / "README.md"
TABLES = 20_000
UNPAIRED, RESAMPLES = 4_000, 500


@dataclass(frozen=True)
class Setting:
    """One truth and one noise. The law is that of the paper's Table 2, sizes are geometric over its
    8.4 times of compute.

    sigma: sd in nats of the paired difference of one seed; common: sd in nats of what a size and
    seed do to both arms; interaction: sd in nats of what a size does to the variant alone; shared:
    the same of a seed, at all sizes alike; tails: degrees of freedom of Student noise scaled to the
    same sd; lost: chance that a seed is missing (one is kept per size); cost: the variant's x over
    the baseline's, on average (it varies by half of the excess over sizes).
    """

    name: str
    sizes: int = 5
    sigma: float = 0.010
    common: float = 0.005
    seeds: int = 1
    interaction: float = 0.0
    tails: float | None = None
    shared: float = 0.0
    lost: float = 0.0
    cost: float = 1.0
    gain: float = 1.25
    span: float = 8.4
    offset: float = 0.0
    noisier: float = 1.0  # sd of the variant over sd of the baseline


GRID = [Setting("noise grid", n, s) for s in (0.003, 0.005, 0.010, 0.015) for n in (3, 4, 5, 7, 10)]
OTHERS = [
    *(
        Setting("heavy tails, Student t3", n, s, tails=3)
        for s in (0.003, 0.010)
        for n in (3, 5, 10)
    ),
    *(Setting("3 seeds", n, seeds=3) for n in (3, 5, 10)),
    *(Setting("3 seeds, 30 % of cells missing", n, seeds=3, lost=0.3) for n in (3, 5, 10)),
    *(
        Setting("3 seeds, the effect differs by size (sd .010)", n, seeds=3, interaction=0.010)
        for n in (3, 5, 10)
    ),
    *(Setting("the variant costs 5 % more", n, cost=1.05) for n in (3, 5, 10)),
    *(Setting("the variant costs 50 % more", n, cost=1.5) for n in (3, 5, 10)),
    *(Setting("the variant is three times as noisy", n, noisier=3) for n in (3, 5, 10)),
    *(Setting("large common effects (sd .010)", n, 0.003, common=0.010) for n in (3, 5, 10)),
    *(Setting("irreducible loss 1.0", n, offset=1.0) for n in (3, 5, 10)),
    *(
        Setting("irreducible loss 1.0, compute over 1000 times", n, offset=1.0, span=1000)
        for n in (3, 5, 10)
    ),
    *(Setting("no gain", n, gain=1.0) for n in (3, 5, 10)),
    *(Setting("gain 3", n, gain=3.0) for n in (3, 5, 10)),
]

SHARED = [
    Setting(f"a seed moves all sizes alike (sd {sd:.3f})", n, seeds=3, shared=sd)
    for sd in (0.005, 0.010)
    for n in (3, 5, 10)
]


def simulate(
    setting: Setting, tables: int, rng: np.random.Generator
) -> tuple[Array, Array, Array, Array]:
    """log x (sizes,) and log losses (tables, sizes, seeds) of the baseline, then of the variant;
    lost cells are NaN.
    """
    s = setting
    x = np.linspace(0, np.log(s.span), s.sizes)
    x_variant = x + np.log(1 + (s.cost - 1) * np.linspace(0.5, 1.5, s.sizes))

    def loss(at: Array) -> Array:
        # the same slope at C = 1
        return s.offset + (1.8622 - s.offset) * np.exp(-0.05494 * 1.8622 / (1.8622 - s.offset) * at)

    def noise(*shape: int) -> Array:
        return (
            rng.standard_normal(shape)
            if s.tails is None
            else rng.standard_t(s.tails, shape) * np.sqrt((s.tails - 2) / s.tails)
        )

    shape = (tables, s.sizes, s.seeds)
    common = s.common * noise(*shape)
    own = s.sigma / np.sqrt(1 + s.noisier**2)
    baseline = loss(x)[:, None] + common + own * noise(*shape)
    variant = (
        loss(x_variant + np.log(s.gain))[:, None]
        + common
        + own * s.noisier * noise(*shape)
        + s.interaction * noise(tables, s.sizes, 1)
    )
    variant += s.shared * noise(tables, 1, s.seeds) if s.shared else 0.0
    lost = rng.random(shape) < s.lost
    lost[..., 0] = False
    return (
        x,
        np.where(lost, np.nan, np.log(baseline)),
        x_variant,
        np.where(lost, np.nan, np.log(variant)),
    )


def share(limits: tuple[Array, Array], truth: float) -> float:
    """Share of the intervals that hold the truth."""
    return float(np.mean((limits[0] <= truth) & (truth <= limits[1])))


def measure(setting: Setting, tables: int = TABLES) -> dict[str, str]:
    """A row of the record."""
    x, y, x_variant, y_variant = simulate(setting, tables, np.random.default_rng(20261122))
    means = np.nanmean(y, axis=-1), np.nanmean(y_variant, axis=-1)
    shift, truth = paired_shift(x, means[0], x_variant, means[1]), float(np.log(setting.gain))
    plain = replace(shift, df=np.full_like(shift.df, setting.sizes - 1))
    mean, slope = shift.mean_variance, (shift.theta + shift.gap) ** 2 * shift.alpha_variance
    welch = replace(
        shift,
        df=(mean + slope) ** 2 / (mean**2 / (setting.sizes - 1) + slope**2 / (setting.sizes - 2)),
    )
    z = replace(shift, df=np.full_like(shift.df, 1e9))
    some = slice(0, min(UNPAIRED, tables))
    draws = unpaired_bootstrap(
        (x, x_variant),
        (means[0][some], means[1][some]),
        float(np.mean((x + x_variant) / 2)),
        RESAMPLES,
    )
    low, high = np.nanquantile(draws, [0.025, 0.975], axis=-1)
    width = np.median(high - low) / np.median(np.subtract(*shift.delta()[::-1])[some])
    row = {"setting": setting.name, "sizes": str(setting.sizes), "sigma": f"{setting.sigma:.3f}"}
    columns = {
        "interval": shift.delta(),
        "Fieller": shift.fieller(),
        "t, sizes - 1": plain.delta(),
        "Welch": welch.delta(),
        "z": z.delta(),
        "unpaired": (low, high),
    }
    row |= {name: f"{share(limits, truth):.3f}" for name, limits in columns.items()}
    row["unpaired width"] = f"{width:.2f}"
    row["seeds pooled"] = (
        f"{_pooled(setting, shift, y - y_variant, x_variant - x, truth):.3f}"
        if setting.seeds > 1
        else "–"
    )
    return row | {"type I": f"{np.mean(shift.slope_p() < 0.05):.3f}"}


def _pooled(setting: Setting, shift: Shift, differences: Array, gap: Array, truth: float) -> float:
    """Coverage of pooling the seeds wherever the F pretest allows it."""
    variance, df = shift.mean_variance.copy(), shift.df.copy()
    corrected = differences - shift.alpha[:, None, None] * gap[:, None]
    some = slice(0, min(UNPAIRED, len(df)))
    for i, values in enumerate(corrected[some]):
        p, pooled_variance, pooled_df = pool_seeds(values)
        if p > POOL_ABOVE:
            variance[i], df[i] = pooled_variance, pooled_df
    low, high = replace(shift, mean_variance=variance, df=df).delta()
    return share((low[some], high[some]), truth)


def measure_at(sizes: int, sigma: float, tables: int = 2_000) -> dict[str, str]:
    """Coverage of the bands of `Gain.at` at the geometric-mean and at the largest compute."""
    x, y, _, y_variant = simulate(
        Setting("", sizes, sigma), tables, np.random.default_rng(20261122)
    )
    row = {"sizes": str(sizes), "sigma": f"{sigma:.3f}"}
    laws = [SeparateLaws((x, x), (a[:, 0], b[:, 0])) for a, b in zip(y, y_variant, strict=True)]
    for place, at in (("geometric mean", x.mean()), ("largest", x.max())):
        for definition in ("extra", "saving"):
            limits = np.array([law.at(float(np.exp(at)), definition).interval for law in laws])
            row[f"{place}, {definition}"] = (
                f"{np.mean((limits[:, 0] <= 1.25) & (limits[:, 1] >= 1.25)):.3f}"
            )
    return row


def markdown(rows: list[dict[str, str]]) -> str:
    """A pipe table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Write all tables into README.md."""
    sections: dict[str, Callable[[], list[dict[str, str]]]] = {
        "grid": lambda: [measure(s) for s in GRID],
        "others": lambda: [measure(s) for s in OTHERS],
        "shared": lambda: [measure(s) for s in SHARED],
        "at": lambda: [measure_at(n, s) for s in (0.003, 0.010) for n in (3, 5, 10)],
    }
    text = README.read_text()
    for name, rows in sections.items():
        before, rest = text.split(f"<!-- {name} -->\n")
        text = (
            f"{before}<!-- {name} -->\n{markdown(rows())}\n<!-- end "
            f"-->{rest.partition('<!-- end -->')[2]}"
        )
    README.write_text(text)


if __name__ == "__main__":
    main()
