"""Shared by the tests of the analysis: published numbers and tables with a truth put in."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from analysis import CHINCHILLA, paper

# Attention Residuals (2603.15031), Table 2: active parameters, tokens, losses.
PARAMS = np.array([194, 241, 296, 436, 528]) * 1e6
TOKENS = np.array([38.7, 45.4, 62.1, 87.9, 119.0]) * 1e9
COMPUTE = 6 * PARAMS * TOKENS
PFLOPS_DAY = 8.64e19
LOSSES = {
    "baseline": [1.931, 1.895, 1.829, 1.766, 1.719],
    "block": [1.909, 1.875, 1.809, 1.746, 1.693],
    "full": [1.899, 1.874, 1.804, 1.737, 1.692],
    "mhc-lite": [1.906, 1.869, 1.807, 1.747, 1.694],
}


def record(path: str) -> ModuleType:
    """A script of docs/results as a module."""
    file = Path(__file__).parents[2] / "docs" / "results" / path
    spec = importlib.util.spec_from_file_location(f"record_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def published(tmp_path, **change) -> pd.DataFrame:
    table = paper.table_2().assign(**change)
    table.to_csv(tmp_path / "runs.csv", index=False)
    return table


def noisy(seed, rows=15, sigma=0.01):
    """A grid of rows x 16 sizes and tokens, and losses with heavy-tailed noise."""
    rng = np.random.default_rng(seed)
    x = np.array(
        [(n, d) for n in np.geomspace(5e7, 1e10, 16) for d in np.geomspace(1e9, 5e11, rows)]
    )
    return x, CHINCHILLA(x, E=1.82, A=478, alpha=0.347, B=2143, beta=0.367) * np.exp(
        sigma * rng.standard_t(3, len(x))
    )


def arms(sizes: int = 5, seeds: int = 1, noise: float = 0.002) -> pd.DataFrame:
    """Runs of a baseline and of a variant worth 1.25 times its compute that costs 3 % more."""
    rng = np.random.default_rng(7)
    rows = []
    for i in range(sizes):
        for k in range(seeds):
            common = rng.normal(0, 0.005)
            for v, worth, cost in (("baseline", 1.0, 1.0), ("full", 1.25, 1.03)):
                c = 1e17 * 2.0**i * cost
                rows.append(
                    {
                        "variant": v,
                        "size": f"d{i}",
                        "seed": k,
                        "flops": c,
                        "val/loss": 30 * (c * worth) ** -0.06 + common + rng.normal(0, noise),
                    }
                )
    return pd.DataFrame(rows)
