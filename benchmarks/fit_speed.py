"""Time 4000 bootstrap refits of the five-parameter law on 240 rows.

    OMP_NUM_THREADS=1 python -m benchmarks.fit_speed [--seconds 20]

The reference is scipy's L-BFGS with analytic gradient, default tolerances and warm starts, on the
same resamples in the same run. Both minimise Hoffmann et al.'s objective (Huber of log residuals,
delta 1e-3) from the optimum of all rows. scipy refits, one after the other, as many resamples as it
can in the time given, and its time is scaled up. Wall and CPU seconds are both given: on a busy
machine CPU seconds say more. Some resamples are also fitted singly, from scratch, to compare
optima. Writes a row to benchmarks/results/YYYY-MM-DD-fit-speed.csv.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time

import numpy as np
from scipy import optimize

from analysis import CHINCHILLA, bootstrap, fit
from analysis.fits.laws import Array
from attnres_lab.benchmarks.saving import save_row

RESAMPLES, SINGLES = 4000, 40


def data() -> tuple[Array, Array]:
    """240 rows: 16 sizes by 15 token counts, noise with three degrees of freedom."""
    x = np.array([(n, d) for n in np.geomspace(5e7, 1e10, 16) for d in np.geomspace(1e9, 5e11, 15)])
    y = CHINCHILLA(x, E=1.82, A=478, alpha=0.347, B=2143, beta=0.367)
    return x, y * np.exp(0.01 * np.random.default_rng(0).standard_t(3, len(y)))


def huber(point: Array, logs: Array, log_y: Array, counts: Array) -> tuple[float, Array]:
    """Sum of Huber losses and its gradient by (log E, log A, log B, alpha, beta), the powers
    centred.
    """
    parts = np.array(
        [
            np.full(len(log_y), point[0]),
            point[1] - point[3] * logs[:, 0],
            point[2] - point[4] * logs[:, 1],
        ]
    )
    terms = np.exp(parts)
    model = terms.sum(0)
    residual = np.log(model) - log_y
    psi = np.clip(residual, -1e-3, 1e-3)
    by = counts * psi * terms / model
    return float(np.sum(counts * psi * (residual - psi / 2))), np.array(
        [*by.sum(1), -by[1] @ logs[:, 0], -by[2] @ logs[:, 1]]
    )


def clocks() -> Array:
    """Wall and CPU seconds (of all threads)."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0)
    seconds = parser.parse_args().seconds
    x, y = data()
    full = fit(CHINCHILLA, x, y, loss="huber")
    begin = clocks()
    many = bootstrap(full, n=RESAMPLES, seed=0)
    ours = clocks() - begin

    counts = (
        np.random.default_rng(0)
        .multinomial(len(y), np.full(len(y), 1 / len(y)), size=RESAMPLES)
        .astype(float)
    )
    centre = np.log(x).mean(0)
    p = full.params
    start = np.array(
        [
            np.log(p["E"]),
            np.log(p["A"]) - p["alpha"] * centre[0],
            np.log(p["B"]) - p["beta"] * centre[1],
            p["alpha"],
            p["beta"],
        ],
        dtype=float,
    )
    theirs: list[float] = []
    begin = clocks()
    while (clocks() - begin)[0] < seconds and len(theirs) < RESAMPLES:
        arguments = (np.log(x) - centre, np.log(y), counts[len(theirs)])
        theirs.append(
            float(optimize.minimize(huber, start, arguments, jac=True, method="L-BFGS-B").fun)
        )
    reference = (clocks() - begin) * RESAMPLES / len(theirs)

    begin = clocks()
    singles = np.array(
        [fit(CHINCHILLA, x, y, loss="huber", weights=counts[i]).objective for i in range(SINGLES)]
    )
    one = (clocks() - begin) / SINGLES
    row = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "numpy": np.__version__,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "load": round(os.getloadavg()[0], 1),
        "bootstrap_4000_wall_s": round(ours[0], 2),
        "bootstrap_4000_cpu_s": round(ours[1], 2),
        "scipy_4000_wall_s": round(reference[0], 1),
        "scipy_4000_cpu_s": round(reference[1], 1),
        "scipy_refits_timed": len(theirs),
        "wall_ratio_scipy_over_ours": round(reference[0] / ours[0], 1),
        "single_fit_cpu_ms": round(1e3 * one[1], 1),
        "failed": many.failed,
        "worst_excess_over_single_fit": f"{np.max(many.objective[:SINGLES] / singles - 1):.1e}",
        "worst_excess_over_scipy": (
            f"{np.max(many.objective[: len(theirs)] / np.array(theirs) - 1):.1e}"
        ),
    }
    save_row("fit-speed", row)


if __name__ == "__main__":
    main()
