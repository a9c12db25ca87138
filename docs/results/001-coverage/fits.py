"""Coverage of a fit's 95 % intervals where rows differ in variance: python fits.py prints the
table.
"""

from __future__ import annotations

import numpy as np

from analysis import CHINCHILLA, Fit, bootstrap, fit
from analysis.fits.laws import Array
from analysis.fits.objective import LossName

TRUTH = {"E": 1.82, "A": 478.0, "alpha": 0.347, "B": 2143.0, "beta": 0.367}
# a profile takes a second; the rest of the cells have 300 tables
TABLES = {("profile", 60): 100, ("profile", 240): 0}
METHODS = ("delta-t", "robust", "profile", "bootstrap")


def table(rng: np.random.Generator, rows: int) -> tuple[Array, Array]:
    """Sizes and tokens at random, and losses whose noise (Student, 4 degrees of freedom) is ten
    times larger at the smallest than at the largest sizes.
    """
    n, d = 10 ** rng.uniform(7.7, 10.2, rows), 10 ** rng.uniform(9, 11.7, rows)
    sigma = 0.02 * 10 ** (-(np.log10(n) - 7.7) / 2.5)
    x = np.c_[n, d]
    return x, CHINCHILLA(x, **TRUTH) * np.exp(sigma * rng.standard_t(4, rows))


def held(found: Fit, method: str, resamples: int) -> Array:
    """Whether the intervals of E, alpha and beta hold the truth, (3,)."""
    limits = (
        bootstrap(found, n=resamples).interval()
        if method == "bootstrap"
        else found.interval(method=method)  # type: ignore[arg-type]
    )
    return np.array(
        [limits[name][0] <= TRUTH[name] <= limits[name][1] for name in ("E", "alpha", "beta")],
        float,
    )


def coverage(loss: LossName, method: str, *, tables: int, rows: int, resamples: int = 500) -> Array:
    """Share of the tables whose intervals hold E, alpha and beta, (3,)."""
    rng = np.random.default_rng(0)
    fits = [fit(CHINCHILLA, *table(rng, rows), loss=loss) for _ in range(tables)]
    return np.asarray(np.mean([held(one, method, resamples) for one in fits], axis=0))


if __name__ == "__main__":
    print("| loss | rows | interval | E | alpha | beta |\n|---|---|---|---|---|---|")
    losses: tuple[LossName, ...] = ("huber", "log_mse")
    for loss in losses:
        for rows in (60, 240):
            for method in METHODS:
                if (tables := TABLES.get((method, rows), 300)) == 0:
                    continue
                shares = coverage(loss, method, tables=tables, rows=rows)
                cells = " | ".join(f"{share:.3f}" for share in shares)
                print(f"| {loss} | {rows} | {method} | {cells} |", flush=True)
