"""Which layers of a model have a window and which have positions: theirs by layer, ours as the
mixers ``attention`` and ``local``.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from attnres_lab.errors import UserError

ALIKE = ("mistral", "phi3")  # families whose layers all have the window, if there is one


def to_ours(mixers: dict[str, Any], config: Any, where: str) -> None:
    """Put into ``model.mixers`` which layers have a window and which have positions. Raises
    UserError for more than two kinds.
    """
    count, window = config.num_hidden_layers, config.sliding_window if _slides(config) else None
    slides = [window is not None] * count
    if config.model_type not in ALIKE:
        types = list(getattr(config, "layer_types", None) or ["full_attention"] * count)
        if unknown := set(types) - {"full_attention", "sliding_attention"}:
            raise UserError(f"{where}: layer_types: {min(unknown)!r} is not supported")
        slides = [window is not None and name == "sliding_attention" for name in types]
    turns = [bool(n) for n in getattr(config, "no_rope_layers", None) or [1] * count]
    kinds = list(zip(slides, turns, strict=True))
    # local is the one with a window, else the one with positions
    several = sorted(set(kinds))
    if len(several) > 2:
        raise UserError(
            f"{where}: layer_types, no_rope_layers: {len(several)} kinds of attention are not "
            "supported, only two"
        )
    named = dict(zip(several, ("attention", "local"), strict=False))
    if len(several) == 2:
        mixers["pattern"] = [named[kind] for kind in kinds]
        mixers["local"] = deepcopy(mixers["attention"])
    for (slid, turned), name in named.items():
        if slid:
            mixers[name]["window"] = window
        if not turned:
            mixers[name].setdefault("rope", {})["fraction"] = 0.0


def _slides(config: Any) -> bool:
    return bool(getattr(config, "use_sliding_window", hasattr(config, "sliding_window")))


def to_theirs(name: str, mixers: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a transformers config of this family."""
    used = [mixers[kind] for kind in mixers["pattern"]]
    windows = [c.get("window") for c in used]
    theirs: dict[str, Any] = {}
    if name in (*ALIKE, "ministral") or any(windows):
        theirs["sliding_window"] = next(filter(None, windows), None)
    if name not in ("llama", *ALIKE):
        theirs["layer_types"] = [f"{'sliding' if w else 'full'}_attention" for w in windows]
    if name not in ("llama", "ministral", *ALIKE):
        theirs["use_sliding_window"] = any(windows)
    if name == "smollm3":
        theirs["no_rope_layers"] = [int(c["rope"]["fraction"] > 0) for c in used]
    return theirs
