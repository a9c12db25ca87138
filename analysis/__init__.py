"""Scaling-law fits and compute-equivalent gains."""

from analysis.ablation import ablation_table
from analysis.depth import load_depth
from analysis.evidence import evidence_forest, evidence_table
from analysis.fits.bootstrap import bootstrap
from analysis.fits.fit import Fit, fit
from analysis.fits.laws import CHINCHILLA, POWER_LAW, POWER_LAW_OFFSET, Law
from analysis.fits.nested import compare
from analysis.gain.gain import Gain, compute_equivalent_gain, gain_at_size
from analysis.gain.published import gain_from_published
from analysis.grid import grid_optimum
from analysis.isoflop import isoflop
from analysis.power import Design, designs, pilot, plan, seeds_needed
from analysis.runs import load_curves, load_runs
from analysis.styles import style
from analysis.tuning import Bowls, bowls

__all__ = ["CHINCHILLA", "POWER_LAW", "POWER_LAW_OFFSET", "Fit", "Law", "bootstrap", "compare"]
__all__ += [
    "Gain",
    "ablation_table",
    "compute_equivalent_gain",
    "evidence_forest",
    "evidence_table",
    "fit",
    "gain_at_size",
    "gain_from_published",
    "grid_optimum",
    "isoflop",
]
__all__ += ["Bowls", "bowls"]
__all__ += [
    "Design",
    "designs",
    "load_curves",
    "load_depth",
    "load_runs",
    "pilot",
    "plan",
    "seeds_needed",
    "style",
]
