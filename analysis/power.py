"""How many seeds and sizes a compute-equivalent gain needs, given the noise."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.checks import DONE, filled, states
from analysis.fits.fit import fit
from analysis.fits.intervals import quantile
from analysis.fits.laws import POWER_LAW, check_positive


@dataclass(frozen=True)
class Design:
    """A planned comparison of one variant with the baseline, paired by size and seed.

    Args:
        sigma: sd of one run's loss (nats) after pairing; a difference of two runs has the sd
        sqrt(2) sigma. sizes, seeds: number of sizes, and of seeds at each. alpha, loss: exponent of
        L = A C^-alpha and a typical loss; by default those of Attention Residuals (2603.15031),
        Table 2. pool_seeds: Student t over all pairs (sizes x seeds - 1 degrees of freedom), as
        published planning tables have it; by default over sizes, as the primary interval of a gain
        has it (docs/decisions/005). interaction: sd of what a variant gains at one size more or
        less than the law says (nats): more seeds do not average it out, more sizes do.

    The error of alpha itself is left out: a few per cent of the variance when the sizes span a
    factor of 8 in compute, more for a large gain (40 % for Full in docs/results/029-mini, at eight
    sizes). Raises ValueError for a sigma, alpha or loss that is not above 0, and
    for fewer than 2 sizes or 1 seed.
    """

    sigma: float
    sizes: int
    seeds: int = 1
    alpha: float = 0.057
    loss: float = 1.8
    pool_seeds: bool = False
    interaction: float = 0.0

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and self.alpha > 0 and self.loss > 0):
            raise ValueError(
                f"sigma, alpha and loss must be positive, not {self.sigma}, {self.alpha} and "
                f"{self.loss}"
            )
        if self.sizes < 2 or self.seeds < 1:
            raise ValueError(
                f"a design needs at least 2 sizes and 1 seed, not {self.sizes} and {self.seeds}"
            )

    @property
    def log_error(self) -> float:
        """Standard error of the log of the gain."""
        variance = (2 * self.sigma**2 / self.seeds + self.interaction**2) / self.sizes
        return float(np.sqrt(variance) / (self.loss * self.alpha))

    @property
    def _freedom(self) -> int:
        return self.sizes * (self.seeds if self.pool_seeds else 1) - 1

    def half_width(self, level: float = 0.95) -> float:
        """How far the upper limit of the gain at ``level`` lies above it: 0.05 is 5 % of it. Raises
        ValueError for a level outside (0, 1).
        """
        return float(np.expm1(quantile(self._freedom, level) * self.log_error))

    def power(self, gain: float, against: float = 1.0, level: float = 0.95) -> float:
        """Probability that the interval at ``level`` excludes ``against`` when the truth is
        ``gain`` (non-central t, two-sided). Raises ValueError for a level outside (0, 1).
        """
        from scipy.special import gammaincinv, ndtr

        effect = np.log(gain / against) / self.log_error
        # scipy's non-central t fails for large effects, so average the normal over the estimate of
        # the sd
        chances = (np.arange(4000) + 0.5) / 4000
        cut = quantile(self._freedom, level) * np.sqrt(
            2 * gammaincinv(self._freedom / 2, chances) / self._freedom
        )
        return float(np.mean(ndtr(effect - cut) + ndtr(-effect - cut)))


def seeds_needed(design: Design, enough: Callable[[Design], bool], most: int = 1000) -> int | None:
    """The fewest seeds per size with which ``enough(design)`` holds, such as ``lambda s:
    s.half_width() <= 0.05``; None above ``most``. What is enough must stay so with more seeds.
    """
    counts = range(1, most + 1)
    at = bisect_left(counts, True, key=lambda seeds: enough(replace(design, seeds=seeds)))
    return counts[at] if at < most else None


TARGETS: dict[str, Callable[[Design], bool]] = {
    "90 % power to exclude 1 at 1.25": lambda design: design.power(1.25) >= 0.9,
    "half-width 5 %": lambda design: design.half_width() <= 0.05,
    "80 % power for 1.25 against 1.20": lambda design: design.power(1.25, against=1.2) >= 0.8,
}


def plan(design: Design, sizes: Sequence[int] = (3, 4, 5, 6, 8, 10)) -> pd.DataFrame:
    """Seeds per size that each of ``TARGETS`` (columns) needs in a design like ``design`` with each
    number of ``sizes`` (index); missing above 1000.
    """
    rows = [
        {
            name: seeds_needed(replace(design, sizes=count), enough)
            for name, enough in TARGETS.items()
        }
        for count in sizes
    ]
    return pd.DataFrame(rows, index=pd.Index(sizes, name="sizes"), dtype="Int64")


def designs(
    design: Design,
    half_width: float = 0.05,
    *,
    hours: float = 1.0,
    variants: int = 2,
    tuning: float = 0.0,
) -> pd.DataFrame:
    """The designs like ``design`` that reach ``half_width``, the cheapest first: columns ``sizes``
    (3 to 32), ``seeds``, ``runs``, ``tuning_runs``, ``device_hours``, ``half_width``.

    hours: device-hours of one run, the mean over the range of sizes, within which further sizes are
    placed. variants: the baseline among them. tuning: runs that choose the rate of each size and
    variant, 4 on average under ``tune`` (docs/results/001-coverage). Empty where no design with at
    most 100 seeds reaches it.
    """
    rows = []
    for sizes in range(3, 33):
        at = replace(design, sizes=sizes)
        seeds = seeds_needed(at, lambda s: s.half_width() <= half_width, most=100)
        if seeds is None:
            continue
        runs, tuned = sizes * variants * seeds, round(sizes * variants * tuning)
        reached = replace(at, seeds=seeds).half_width()
        rows.append((sizes, seeds, runs, tuned, (runs + tuned) * hours, reached))
    names = ["sizes", "seeds", "runs", "tuning_runs", "device_hours", "half_width"]
    found = pd.DataFrame(rows, columns=names)
    found = found.iloc[(found["runs"] + found["tuning_runs"]).argsort(kind="stable")]
    return found.reset_index(drop=True)


def pilot(
    runs: pd.DataFrame, *, baseline: str = "baseline", x: str = "flops", y: str = "val/loss"
) -> Design:
    """A design with the noise, exponent, loss, sizes and seeds of pilot ``runs`` (columns
    ``variant``, ``size``, ``seed``, x, y).

    The noise is that of the differences of log loss to the baseline of the same size and seed, both
    brought to equal x along the baseline's law. ``sigma`` is their scatter over seeds of a size;
    ``interaction`` that of their means over sizes, less what sigma makes of it (0 where that is
    all). With one seed per size, sigma is the whole scatter over sizes; with the baseline alone,
    that of its own log loss over seeds (nothing cancels, so it is an upper guess). With one size,
    alpha is the default. A `status` column, if there, tells which runs did not finish: they are
    left out. Raises ValueError: no rows of the baseline, losses or x that are not positive and
    finite, several runs of one cell, an unknown status, or nothing is repeated.
    """
    if missing := {"variant", "size", "seed", x, y} - set(runs):
        raise ValueError(
            f"no column {', '.join(map(repr, sorted(missing)))} in the pilot's runs; x and y name "
            "those of compute and loss"
        )
    done = states(runs).isin(DONE)
    for name in (x, y):
        check_positive(name, runs[name].where(done, 1.0))
    cell = ["variant", "size", "seed"]
    runs = runs[done].astype({x: float, y: float})
    filled(runs, cell)
    if (again := runs.duplicated(cell)).any():
        first = ", ".join(f"{name} {runs.loc[again, name].iloc[0]}" for name in cell)
        raise ValueError(f"several runs of {first}: keep one of each cell, or average them first")
    arms = list(dict.fromkeys(runs["variant"]))
    if baseline not in arms:
        raise ValueError(
            f"the pilot has no variant {baseline!r}; it has {', '.join(map(str, arms))}"
        )
    base = runs[runs["variant"] == baseline].groupby("size")[[x, y]].mean()
    loss = float(np.exp(np.log(base[y]).mean()))
    alpha = fit(POWER_LAW, base[x], base[y]).params["alpha"] if len(base) > 1 else Design.alpha
    at_equal_x = np.log(runs[y]) + alpha * np.log(runs[x])
    logs = (
        runs[cell]
        .assign(log_loss=at_equal_x)
        .pivot(index=["size", "seed"], columns="variant", values="log_loss")
    )
    alone = len(arms) == 1
    values = logs if alone else logs.drop(columns=baseline).sub(logs[baseline], axis=0)
    noise, between = _variances(values, alone=alone)
    return Design(
        loss * float(np.sqrt(noise / (1 if alone else 2))),
        max(len(base), 2),
        int(values.groupby(level="size").size().max()),
        alpha,
        loss,
        interaction=loss * float(np.sqrt(between)),
    )


def _variances(values: pd.DataFrame, *, alone: bool) -> tuple[float, float]:
    """Of log losses or their differences (index size and seed, a column per variant): the variance
    of one, and that of what a size has of its own. Raises ValueError where nothing is repeated.
    """
    by_size = values.groupby(level="size")
    pairs, means = by_size.count(), by_size.mean()
    scatter, freedom = values - by_size.transform("mean"), (pairs - 1).clip(lower=0).sum().sum()
    repeated = freedom > 0
    if not repeated and not alone:
        scatter, freedom = values - values.mean(), (values.count() - 1).clip(lower=0).sum()
    if not freedom:
        raise ValueError(
            "the pilot repeats nothing: give two seeds of a size, or two sizes of the baseline "
            "and a variant"
        )
    noise = float(np.nansum(scatter.to_numpy() ** 2)) / float(freedom)
    if alone or not repeated:
        return noise, 0.0
    beyond = float((means.var() - noise * (1 / pairs[pairs > 0]).mean()).mean())
    return noise, beyond if beyond > 0 else 0.0  # NaN of one size
