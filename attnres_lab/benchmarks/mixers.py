"""What a sublayer costs: a training step beside attention's, and a decoded token after a short and
a long context, interleaved in one run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from attnres_lab.errors import UserError, nearest
from attnres_lab.mixers import MLPS, Mixer, MixersConfig, State
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.model.init import init_weights

TOKEN_MIXERS = ("attention", "kda", "mla")
CONTEXTS = (256, 4096)
TOKENS = 16  # decoded between two looks at the clock


def sublayer(name: str, dim: int) -> Mixer:
    """The mixer at its defaults, weights drawn, heads 64 wide. Raises UserError for a name that is
    none.
    """
    known = [*TOKEN_MIXERS, *sorted(MLPS)]
    if name not in known:
        raise UserError(
            f"--mixers: unknown mixer '{name}'{nearest(name, known)}; known: {', '.join(known)}"
        )
    token = name in TOKEN_MIXERS
    config = ModelConfig(
        dim=dim,
        num_layers=2,  # a mixture's first layer is dense
        num_heads=max(1, dim // 64),
        mixers=MixersConfig(pattern=(name,)) if token else MixersConfig(),
        mlp=MLPS["swiglu" if token else name](),
    )
    model = Transformer(config)
    init_weights(model, seed=0)
    return model.mixers()[2 if token else 3]


def train_step(mixer: Mixer, dim: int, batch: int, seq_len: int) -> Callable[[], None]:
    """Forward and backward of one sublayer, [batch, seq_len, dim]."""
    x_BTD = torch.randn(
        batch, seq_len, dim, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()

    def work() -> None:
        mixer(x_BTD).square().mean().backward()

    return work


def decode(mixer: Mixer, dim: int, context: int) -> Callable[[], None]:
    """Decode ``TOKENS`` tokens after ``context`` positions; every call starts there again."""
    make = torch.Generator().manual_seed(0)
    state = State()
    with torch.inference_mode():
        for start in range(0, context, 256):
            piece = torch.randn(1, min(256, context - start), dim, generator=make)
            mixer(piece, start, state)
        tokens = torch.randn(TOKENS, 1, 1, dim, generator=make)

    def work() -> None:
        own = State(state)
        with torch.inference_mode():
            for i, token in enumerate(tokens):
                mixer(token, context + i, own)

    return work


def measure(
    mixers: Sequence[str], dim: int, batch: int, seq_len: int, threads: int, repeats: int
) -> list[dict[str, Any]]:
    """One row per mixer: medians in milliseconds of a step (``train_ms``) and of a decoded token
    after each context (``decode_256_ms``), and their ratios. Channel mixers keep no state, so have
    no rows of decoding.
    """
    torch.set_num_threads(threads)
    works: dict[tuple[str, str], Callable[[], None]] = {}
    for name in mixers:
        mixer = sublayer(name, dim)
        works[name, "train_ms"] = train_step(mixer, dim, batch, seq_len)
        for context in CONTEXTS if name in TOKEN_MIXERS else ():
            works[name, f"decode_{context}_ms"] = decode(mixer, dim, context)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    for repeat in range(repeats + 2):
        for key in works if repeat % 2 else reversed(works):
            start = time.perf_counter()
            works[key]()
            spent = 1e3 * (time.perf_counter() - start)
            if repeat >= 2:
                times[key].append(spent / (1 if key[1] == "train_ms" else TOKENS))
    rows: list[dict[str, Any]] = []
    for name in mixers:
        row: dict[str, Any] = {"mixer": name}
        for (mixer_name, what), series in times.items():
            if mixer_name == name:
                low, mid, high = statistics.quantiles(series, n=4)
                row |= {what: mid, f"{what}_quartiles": f"{low:.3f}-{high:.3f}"}
        first = rows[0] if rows else row
        row["train_ratio"] = row["train_ms"] / first["train_ms"]
        if name in TOKEN_MIXERS:
            short, long = (row[f"decode_{context}_ms"] for context in CONTEXTS)
            row["decode_ratio"] = long / short
        rows.append(row)
    return rows
