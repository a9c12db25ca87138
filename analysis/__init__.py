"""Scaling-law fits and compute-equivalent gains."""

from analysis.ablation import ablation_table
from analysis.bootstrap import bootstrap
from analysis.depth import load_depth
from analysis.fit import Fit, fit
from analysis.gain import Gain, compute_equivalent_gain
from analysis.isoflop import grid_optimum, isoflop
from analysis.laws import CHINCHILLA, POWER_LAW, POWER_LAW_OFFSET, Law
from analysis.power import Study, pilot, plan, seeds_needed, sizes_needed
from analysis.published import gain_from_published
from analysis.runs import load_curves, load_runs

__all__ = ["CHINCHILLA", "POWER_LAW", "POWER_LAW_OFFSET", "Fit", "Law", "bootstrap", "fit"]
__all__ += [
    "Gain",
    "ablation_table",
    "compute_equivalent_gain",
    "gain_from_published",
    "grid_optimum",
    "isoflop",
]
__all__ += [
    "Study",
    "load_curves",
    "load_depth",
    "load_runs",
    "pilot",
    "plan",
    "seeds_needed",
    "sizes_needed",
]
