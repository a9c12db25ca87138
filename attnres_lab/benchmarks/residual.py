"""What a residual connection costs: interleaved runs of whole training steps (or of reading a
prompt, or of decoding after it), and reads alone, with peers in the same run.

An arm is ``variant`` or ``read:variant``: ``full``, ``block8``, ``block-s4``, any name of the
registry; ``naive:full``, ``lean:block8``. Options follow a plus: ``full+heads=4+window=8``,
``full+key_norm=False``.
"""

from __future__ import annotations

import ast
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from attnres_lab import ops
from attnres_lab.benchmarks.peers import Read, installed
from attnres_lab.benchmarks.timing import interleave
from attnres_lab.errors import UserError
from attnres_lab.model import Cache, ModelConfig, Transformer
from attnres_lab.model.generate import Reading, prefill
from attnres_lab.ops import PAPER, decoding, lean, naive, twophase
from attnres_lab.residual import REGISTRY

DECODED = 64  # tokens of a timed call
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """Sizes and device of one benchmark; ``layers`` are Transformer layers, two sublayers each."""

    dim: int = 256
    layers: int = 12
    batch: int = 8
    seq_len: int = 256
    device: str = "cpu"
    dtype: str = "fp32"
    threads: int = 2
    repeats: int = 20
    mode: str = "train"  # "prefill": reading seq_len tokens; "decode": 64 tokens after them
    chunk: int = 512  # tokens of a prompt that are read at once

    @property
    def label(self) -> str:
        shape = f"d{self.dim}-L{2 * self.layers}-{self.batch}x{self.seq_len}"
        chunk = f"-c{self.chunk}" if self.mode == "prefill" else ""
        return f"{self.mode}-{self.device}-{self.dtype}-{shape}{chunk}"

    @property
    def tokens(self) -> int:
        """Of one timed call."""
        return self.batch * (DECODED if self.mode == "decode" else self.seq_len)


def model_of(arm: str, case: Case) -> Transformer:
    """The arm's model, all with the same trunk weights."""
    variant, *given = arm.rpartition(":")[2].split("+")
    options = dict(_option(text) for text in given)
    if match := re.fullmatch(r"block(-s)?(\d+)", variant):
        variant = "block"
        options["block_size" if match[1] else "num_blocks"] = int(match[2])
    if variant not in REGISTRY:
        raise UserError(
            f"--variants: unknown variant '{variant}'; valid: {', '.join(sorted(REGISTRY))}, "
            "block<N>, block-s<S>"
        )
    kind = REGISTRY[variant].Config
    for key in options:
        if key not in (valid := [f.name for f in fields(kind) if f.name != "name"]):
            raise UserError(
                f"--variants: {variant} has no option '{key}'; valid: {', '.join(valid)}"
            )
    residual = kind(name=variant, **options)
    heads = max(1, case.dim // 64)
    model = Transformer(
        ModelConfig(dim=case.dim, num_layers=case.layers, num_heads=heads, residual=residual)
    )
    return model.to(case.device, DTYPES[case.dtype])


def _option(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def _paper_only(name: str, read: Read) -> Any:
    def checked(*arguments: Any) -> Tensor:
        if arguments[4:] not in ((), (PAPER,)):
            raise UserError(f"--variants: the read '{name}' has no options; take naive or lean")
        return read(*arguments[:4])

    return checked


@contextmanager
def reading(arm: str, case: Case) -> Iterator[None]:
    """Inside, depth attention is the arm's."""
    name = arm.rpartition(":")[0]
    reads: dict[str, Any] = {
        "naive": naive.depth_attention,
        "lean": lean.depth_attention,
        **{name: _paper_only(name, read) for name, read in installed(case.device).items()},
    }
    if name and name not in reads:
        raise UserError(f"--variants: no read '{name}' here; available: {', '.join(reads)}")
    with ExitStack() as stack:
        if name:
            stack.enter_context(patch.object(ops, "depth_attention", reads[name]))
            for schedule in (twophase, decoding):
                stack.enter_context(patch.object(schedule, "serves", lambda *_: False))
        yield


def check(arm: str, case: Case) -> float:
    """Largest difference of the logits from those of naive reads, relative to their size, with
    random queries.

    Raises ValueError where it is more than rounding.
    """
    model = model_of(arm, case)
    make = torch.Generator().manual_seed(1)
    for parameter in model.residual.parameters():
        # logits, query x gain x key, of about 1
        parameter.data.copy_(torch.randn(parameter.shape, generator=make) * case.dim**-0.25)
    tokens = torch.randint(0, 256, (2, min(case.seq_len, 64)), generator=make).to(case.device)
    with torch.no_grad(), reading("naive:" + arm.rpartition(":")[2], case):
        expected = model(tokens)
    with torch.no_grad(), reading(arm, case):
        error = float((model(tokens) - expected).abs().max() / expected.abs().max())
    if error > (1e-3 if case.dtype == "fp32" else 0.1):
        raise ValueError(
            f"{arm}: its logits differ from the naive reads' by {error:.1e} of their size"
        )
    return error


def work_of(model: Transformer, case: Case) -> Callable[[], object]:
    """One training step, the reading of a prompt, or greedy decoding after it."""
    tokens = torch.randint(
        0, 256, (case.batch, case.seq_len + 1), generator=torch.Generator().manual_seed(0)
    ).to(case.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def train() -> None:
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    def read() -> Cache:
        cache = model.cache()
        prefill(model, tokens[:, :-1], cache, Reading(case.chunk))
        return cache

    cache = read() if case.mode == "decode" else model.cache()

    @torch.inference_mode()
    def decode() -> None:
        own, token = cache.copy(), tokens[:, -1:]
        for _ in range(DECODED):
            token = model(token, own).argmax(-1)

    return {"train": train, "prefill": read, "decode": decode}[case.mode]


def seconds(work: Callable[[], object], case: Case) -> float:
    start = time.perf_counter()
    work()
    if case.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(work: Callable[[], object], case: Case) -> int:
    """Most memory held at once beyond what was held before the call (CPU: from the profiler's
    record of every allocation).
    """
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def bandwidth(case: Case) -> float:
    """Bytes per second of a copy that no cache holds: read plus written."""
    x = torch.empty(2**28, dtype=torch.uint8, device=case.device)
    y = torch.ones_like(x)
    return 2 * x.numel() / min(seconds(lambda: x.copy_(y), case) for _ in range(7))


def read_rates(case: Case, read: Read) -> dict[str, float]:
    """Bytes per second of one read of half the sublayers, counted as each source once (backward:
    sources read, gradients written) and the output.
    """
    count, shape, dtype = case.layers, (case.batch, case.seq_len, case.dim), DTYPES[case.dtype]
    sources = [
        torch.randn(shape, device=case.device, dtype=dtype, requires_grad=True)
        for _ in range(count)
    ]
    query, gain = (
        torch.randn(case.dim, device=case.device, dtype=dtype, requires_grad=True) for _ in range(2)
    )
    h = read(sources, query, gain, 1e-6)
    grad, one = torch.randn_like(h), h.numel() * h.element_size()

    def back() -> Any:
        return torch.autograd.grad(h, [*sources, query, gain], grad, retain_graph=True)

    with torch.no_grad():
        forward = min(seconds(lambda: read(sources, query, gain, 1e-6), case) for _ in range(7))
    return {
        "read_bytes_per_second": (count + 1) * one / forward,
        "read_backward_bytes_per_second": (2 * count + 1)
        * one
        / min(seconds(back, case) for _ in range(7)),
    }


def measure(case: Case, arms: Sequence[str]) -> list[dict[str, Any]]:
    """One row per arm; the first arm is what the ratios refer to. Raises ValueError where an arm is
    wrong, UserError where it is unknown.
    """
    torch.set_num_threads(case.threads)
    errors = {arm: check(arm, case) for arm in arms}
    works = {arm: work_of(model_of(arm, case), case) for arm in arms}

    def timed(arm: str) -> float:
        with reading(arm, case):
            return seconds(works[arm], case)

    times = interleave({arm: partial(timed, arm) for arm in arms}, case.repeats)
    copy = bandwidth(case)
    rows: list[dict[str, Any]] = []
    for arm in arms:
        low, mid, high = statistics.quantiles(times[arm], n=4)
        with reading(arm, case):
            row: dict[str, Any] = {
                "arm": arm,
                "median_ms": 1e3 * mid,
                "quartile1_ms": 1e3 * low,
                "quartile3_ms": 1e3 * high,
                "min_ms": 1e3 * min(times[arm]),
            }
            row |= {"peak_bytes": peak_bytes(works[arm], case), "error": errors[arm]}
            if arm.rpartition(":")[2] != "baseline" and case.mode == "train":
                row |= read_rates(case, ops.depth_attention)
        base = rows[0] if rows else row
        row |= {
            "ratio": row["median_ms"] / base["median_ms"],
            "ratio_min": row["min_ms"] / base["min_ms"],
        }
        row |= {
            "memory_ratio": row["peak_bytes"] / max(base["peak_bytes"], 1),
            "tokens_per_second": case.tokens / mid,
            "copy_bytes_per_second": copy,
        }
        rows.append(row)
    return rows
