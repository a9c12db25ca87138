"""One colour and one marker for each variant, by its name, in every figure of the project."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from zlib import crc32

BLACK = "#000000"
#: Okabe & Ito's palette without its yellow, which vanishes on white.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: Variants that stand in many figures; the first six have a colour and a marker each.
FIRST: tuple[str, ...] = (
    "full",
    "block8",
    "mhc",
    "full-hkv",
    "denseformer",
    "hyper",
    "delta",
    "rmsblock",
    "mudd",
)
FIRST += ("value", "block4", "frac", "gated", "ddl", "x0", "rescaled", "block2", "block16")
KINDS = 4 * len(PALETTE) ** 2


@dataclass(frozen=True)
class Look:
    """``color``, and the numbers of a marker (0 is the baseline's, then 1 to 6) and of a line (0 to
    3).
    """

    color: str
    marker: int
    line: int


def looks(variants: Iterable[object], baseline: str = "baseline") -> dict[str, Look]:
    """A look for each variant: the baseline is black, the others have theirs by their names,
    whatever stands beside them. Of two unlisted names with one look (of 126) the second by the
    alphabet takes the next that is free in the figure, as long as there is one.
    """
    places: dict[str, int] = {}
    rest, many = KINDS - len(FIRST), len(PALETTE)
    for name in sorted({str(v) for v in variants} - {baseline}):
        own = crc32(name.encode())
        ring = [len(FIRST) + (own + k) % rest for k in range(rest)]
        free = next((place for place in ring if place not in places.values()), ring[0])
        places[name] = FIRST.index(name) if name in FIRST else free
    found = {
        name: Look(PALETTE[p % many], 1 + (p + p // many) % many, p // many**2)
        for name, p in places.items()
    }
    return {baseline: Look(BLACK, 0, 0), **found}
