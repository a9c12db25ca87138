"""One colour, marker and line for each variant, by its name, in every figure of the project."""

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
#: What the paper (arXiv 2603.15031) calls our variants: in Table 2, then in Table 4.
PAPER = {
    "block": "block8",
    "DenseFormer": "denseformer",
    "mHC": "mhc",
    "Full": "full",
    "Full, input-dependent query": "full-input",
    "Full, input-independent mixing": "full-static",
    "Full, sigmoid": "full-sigmoid",
    "Full, no key norm": "full-nokeynorm",
    "sliding window 1 + 8": "full-w8",
    "Block, S = 4": "block-s4",
    "Block, 16 heads": "block-s4-h16",
    "Block, no key norm": "block-s4-nokeynorm",
}
KINDS = 4 * len(PALETTE) ** 2


@dataclass(frozen=True)
class Look:
    """``color``, and the numbers of a marker (0 is the baseline's, then 1 to 6) and of a line (0 to
    3, and more where more than ``KINDS`` variants meet).
    """

    color: str
    marker: int
    line: int


def looks(variants: Iterable[object], baseline: str = "baseline") -> dict[str, Look]:
    """A look for each variant, and no two alike: the baseline is black, the others have theirs by
    their names, whatever stands beside them, the paper's names those of our labels.

    Of two unlisted names that fall on one look (of 126) the second by the alphabet takes the next
    that is free; beyond 126 unlisted names there are further lines.
    """
    names = sorted({str(v) for v in variants} - {baseline})
    # two names of one variant in one figure must be told apart
    known = {name: PAPER[name] for name in names if PAPER.get(name, name) not in names}
    places = {name: FIRST.index(k) for name in names if (k := known.get(name, name)) in FIRST}
    taken = set(places.values())
    rest = KINDS - len(FIRST)
    for name in (name for name in names if name not in places):
        own = crc32(known.get(name, name).encode())
        ring = (len(FIRST) + (own + k) % rest for k in range(rest))
        spare = max(KINDS - 1, *taken, 0) + 1
        places[name] = next((place for place in ring if place not in taken), spare)
        taken.add(places[name])
    return {baseline: Look(BLACK, 0, 0), **{name: _look(place) for name, place in places.items()}}


def _look(place: int) -> Look:
    """Colour changes fastest, then marker, then line; a colour that comes again is darker."""
    many = len(PALETTE)
    return Look(
        _shade(PALETTE[place % many], place // many),
        1 + (place + place // many) % many,
        place // many**2,
    )


def _shade(color: str, turn: int) -> str:
    """``color`` the first time, then darker: MLflow tells lines by their colour alone."""
    light = (1.0, 0.66, 0.42)[turn] if turn < 3 else 0.4 + 0.6 * (turn * 0.618034 % 1)
    return "#" + "".join(f"{round(int(color[i : i + 2], 16) * light):02X}" for i in (1, 3, 5))
