"""Optimal shape of the paper's Fig. 7, with its uncertainty, from the printed losses."""

from analysis import grid_optimum
from analysis.paper import figure_7

base, attnres = (grid_optimum(figure_7(variant)) for variant in ("baseline", "attnres"))
for variant, best in (("baseline", base), ("attnres", attnres)):
    low, high = best.smooth.interval
    print(
        f"{variant:9} lowest cell d/layers {best.column:g} ({best.loss:.3f}); not told apart from "
        f"it: {len(best.tied)} cells;",
        end=" ",
    )
    print(
        f"smooth optimum {best.smooth.at:.1f} [{low:.1f}, {high:.1f}], residual sd {best.noise:.4f}"
    )
ratio, (low, high) = base.shift_to(attnres)
print(f"AttnRes over baseline: {ratio:.2f} [{low:.2f}, {high:.2f}]")
