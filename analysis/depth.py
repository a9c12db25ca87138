"""What a model reads over depth: attention maps, entropies, and magnitudes and gradients by depth
(arXiv 2603.15031, Figs 5 and 8).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attnres_lab.runs import RunFolder

PER_SUBLAYER = ("input_rms", "output_rms", "gradient_norm", "update_ratio")


@dataclass(frozen=True)
class DepthRecord:
    """One probe of one run at one step, averaged over its tokens.

    ``attention``: row per read, indexed by (sublayer, kind), column per source, NaN where the read
    had no such source. Sublayers count from 0; the output read comes after the last. The open
    partial sum of a block stands in the column of the block that it becomes, so that the newest
    source is the diagonal for Full and Block alike. ``mass``: the same rows; ``sources`` (how
    many), ``entropy`` (nats), ``evenness`` (entropy over its largest value, the log of the
    sources), ``embedding``, ``latest`` (the newest source), ``own`` (the partial sum of the read's
    own block; NaN for a read without one), ``far`` (the rest: neither embedding nor newest).
    ``profile``: row per sublayer, as far as recorded: ``input_rms`` and ``output_rms`` (root mean
    square of what enters and leaves), ``gradient_norm`` (L2, of the loss by its output),
    ``update_ratio`` (L2 of the step's change over L2 of the weights).
    """

    step: int
    attention: pd.DataFrame
    mass: pd.DataFrame
    profile: pd.DataFrame


def load_depth(folder: str | Path) -> list[DepthRecord]:
    """The records of a run in the order of their steps; ``folder`` holds ``step-*.json`` or is a
    run folder with ``artifacts/depth``.

    An empty list where the run was not probed. Raises ValueError, naming the file, for a record
    that does not fit together.
    """
    inside = RunFolder(folder).depth
    files = (inside if inside.is_dir() else Path(folder)).glob("step-*.json")
    return sorted((read_depth(file) for file in files), key=lambda record: record.step)


def read_depth(file: str | Path) -> DepthRecord:
    """One record. Raises ValueError, naming the file, where it is not a depth record or weights and
    sources differ in number.
    """
    try:
        raw = json.loads(Path(file).read_text())
        reads = [_read(read) for read in raw["reads"]]
        step, profile = (
            int(raw["step"]),
            pd.DataFrame(
                {key: pd.Series(raw[key], dtype=float) for key in PER_SUBLAYER if raw.get(key)}
            ),
        )
        index = pd.MultiIndex.from_tuples(
            [(int(read["sublayer"]), str(read["kind"])) for read in raw["reads"]],
            names=["sublayer", "kind"],
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not a depth record ({error!r})") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    profile.index.name = "sublayer"
    names = {name for weights, _ in reads for name in weights}
    order = sorted(
        names, key=lambda name: (name != "embedding", int("".join(filter(str.isdigit, name)) or 0))
    )
    attention = pd.DataFrame(
        [weights for weights, _ in reads], index=index, columns=order, dtype=float
    )
    return DepthRecord(
        step, attention, pd.DataFrame([mass for _, mass in reads], index=index), profile
    )


def _read(read: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Weights by column, and where the mass of a read lies."""
    sources, entropy = read["sources"], float(read["entropy"])
    weights = [float(weight) for weight in read["weights"]]
    if (count := len(sources)) != len(weights):
        raise ValueError(
            f"the read at sublayer {read['sublayer']} has {len(weights)} weights for {count} "
            "sources"
        )
    by_source = dict(zip(sources, weights, strict=True))
    embedding, latest, own = (
        by_source.get("embedding", 0.0),
        weights[-1],
        by_source.get("partial", np.nan),
    )
    far = sum(
        weight for name, weight in by_source.items() if name not in ("embedding", sources[-1])
    )
    evenness = entropy / np.log(count) if count > 1 else np.nan
    mass = {
        "sources": count,
        "entropy": entropy,
        "evenness": evenness,
        "embedding": embedding,
        "latest": latest,
        "own": own,
        "far": far,
    }
    # the open partial sum becomes the next block
    columns = [f"b{count - 1}" if name == "partial" else name for name in sources]
    return dict(zip(columns, weights, strict=True)), mass
