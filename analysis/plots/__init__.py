"""Figures. Each function draws finished numbers on an ``ax`` and returns it: nothing is computed
here.
"""

from analysis.plots.runs import (
    ablation_forest,
    by_depth,
    depth_map,
    grid_map,
    learning_rate_bowls,
    training_curves,
)
from analysis.plots.scaling import (
    gain_by_compute,
    gain_per_size,
    isoflop_valleys,
    loss_against_compute,
)
from analysis.plots.style import heading, new_axes, same_limits, save
from analysis.plots.tuning import tuning_bowls
from analysis.styles import PRINT

__all__ = [
    "PRINT",
    "ablation_forest",
    "by_depth",
    "depth_map",
    "gain_by_compute",
    "gain_per_size",
    "grid_map",
    "heading",
]
__all__ += [
    "isoflop_valleys",
    "learning_rate_bowls",
    "loss_against_compute",
    "new_axes",
    "same_limits",
    "save",
    "training_curves",
    "tuning_bowls",
]
