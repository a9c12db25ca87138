"""What a pipeline would cost on a cluster: bytes exactly, seconds and memory by a model.

The bytes of a hop are counted as ``Stage`` counts them. The seconds are those of matrix products at
a rate that the caller believes in, of the residual connection's memory traffic (arXiv 2603.15031,
Table 1: units of the width per token and sublayer, a backward pass twice a forward one), of the
bubble, (P - 1) / (V M) of the work, and of the hops. Left out: gradients over data-parallel
pipelines, expert parallelism, the head's imbalance, launches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from attnres_lab.model import ModelConfig
from attnres_lab.model.flops import forward_flops_per_token, num_params
from attnres_lab.pipeline.layout import Layout, Traffic, traffic
from attnres_lab.pipeline.run import crossing
from attnres_lab.residual import REGISTRY
from attnres_lab.residual.attnres import BlockConfig, FullConfig
from attnres_lab.residual.baseline import BaselineConfig
from attnres_lab.residual.mhc import MHCConfig

STATE_BYTES = 16  # of a parameter: weight, gradient and two moments in fp32
KEPT = 4  # tensors of the width that a sublayer keeps for its backward pass, roughly; recomputed: 1


@dataclass(frozen=True)
class Machine:
    """Per device: FLOP/s that training reaches, bytes per second of its memory, and of the link to
    the next rank, each way.
    """

    flops: float
    memory: float
    link: float

    def __post_init__(self) -> None:
        """Raises ValueError with the key and the remedy."""
        for key in ("flops", "memory", "link"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}: {getattr(self, key)} is not positive; give a rate")


@dataclass(frozen=True)
class Work:
    """One optimiser step of one pipeline. ``width``: bytes of a number that crosses a hop."""

    ranks: int
    virtual: int
    microbatches: int
    sequences: int  # of a microbatch
    seq_len: int
    caching: bool = True
    width: int = 2

    @property
    def tokens(self) -> int:
        """Of a microbatch."""
        return self.sequences * self.seq_len


@dataclass(frozen=True)
class Estimate:
    """``bytes``: over all hops, per microbatch and direction; ``heaviest``: of the hop with the
    most. ``seconds``: of a step whose hops hide behind the work of their rank; ``bare``: of one
    where none does. ``bubble``: idle share of a step without its hops. ``memory``: bytes of
    the fullest rank, of which ``sources`` hold what later stages read.
    """

    bytes: int
    heaviest: int
    seconds: float
    bare: float
    bubble: float
    memory: float
    sources: float


def sizes(c: ModelConfig, work: Work) -> list[list[int]]:
    """Bytes of each tensor that each stage receives for a microbatch."""
    stages, crossings = _traffic(c, work)
    return [[]] + [
        [named[name] * work.width for name in stage.received]
        for stage, named in zip(stages[1:], crossings, strict=True)
    ]


def _traffic(c: ModelConfig, work: Work) -> tuple[list[Traffic], list[dict[str, int]]]:
    layout = Layout(work.ranks, work.virtual, c.num_sublayers)
    if c.num_sublayers % layout.stages:
        raise ValueError(
            f"virtual: {c.num_sublayers} sublayers do not divide into {work.ranks} ranks x "
            f"{work.virtual} stages; change either"
        )
    named = [
        {name: count * work.tokens for name, count in numbers.items()}
        for numbers in _carried(c, layout.cuts)
    ]
    return traffic(layout, [list(names) for names in named], work.caching), named


@lru_cache(maxsize=64)
def _carried(c: ModelConfig, cuts: tuple[int, ...]) -> tuple[dict[str, int], ...]:
    """How many numbers of a token each tensor has that crosses each cut, from a pass of one."""
    residual = REGISTRY[c.residual.name](c.residual, c.num_sublayers, c.dim, c.norm_eps)
    residual.apart = True
    crossings = crossing(residual, c, torch.zeros(1, 1, c.dim), cuts)
    return tuple({name: t.numel() for name, t in tensors.items()} for tensors in crossings)


def kept(c: ModelConfig, tokens: int) -> int:
    """Numbers that the residual connection holds of so many tokens at the end of the depth, where
    it holds most: of Block the embedding and the blocks.
    """
    (numbers,) = _carried(c, (c.num_sublayers,))
    return tokens * sum(numbers.values())


def access(c: ModelConfig) -> float:
    """Numbers read and written by the residual connection, in units of the width per token and
    sublayer, forward. Raises ValueError for variants without a published count.
    """
    r = c.residual
    if isinstance(r, BaselineConfig):
        return 3
    if isinstance(r, BlockConfig) and r.name == "block":
        count = len(r.ends(c.num_sublayers))
        return count * count / c.num_sublayers + 5  # N / S + 5
    if isinstance(r, FullConfig):
        phase = max(1, round(math.sqrt(c.num_sublayers)))  # two phases: S + N, S N sublayers
        return phase + c.num_sublayers / phase
    if isinstance(r, MHCConfig):
        return 8 * r.streams + 2
    raise ValueError(
        f"model.residual: there is no published count of memory accesses for {r.label}; take "
        "baseline, block, full or mhc"
    )


def in_flight(work: Work) -> int:
    """Stages' microbatches that the first rank holds at once under Interleaved1F1B; with one stage
    per rank under 1F1B.
    """
    warm = work.ranks if work.virtual == 1 else 2 * work.ranks + (work.virtual - 1) * work.ranks - 1
    return min(warm, work.microbatches * work.virtual)


def estimate(c: ModelConfig, work: Work, machine: Machine) -> Estimate:
    """The cost of one step. Raises ValueError where the layout does not divide the model."""
    stages, named = _traffic(c, work)
    received = [sum(row) for row in sizes(c, work)]
    chunks, tokens = work.ranks * work.virtual, work.tokens
    products = 3 * forward_flops_per_token(c, work.seq_len) * tokens / machine.flops
    moved = 3 * access(c) * c.dim * work.width * tokens * c.num_sublayers / machine.memory
    chunk = (products + moved) / chunks  # forward and backward of a stage
    work_seconds = (work.microbatches * work.virtual + work.ranks - 1) * chunk
    per_rank = [sum(received[stage :: work.ranks]) for stage in range(work.ranks)]
    hops = 2 * work.microbatches * max(per_rank) / machine.link
    held = max(
        sum(
            named[stage - 1][n]
            for stage in range(rank, chunks, work.ranks)
            if stage
            for n in stages[stage].received
        )
        for rank in range(work.ranks)
    )
    sources = held * work.width * -(-in_flight(work) // work.virtual)
    kept = 1 if c.activation_checkpointing else KEPT
    activations = in_flight(work) * c.num_sublayers / chunks * tokens * c.dim * work.width * kept
    params = num_params(c)
    ends = c.vocab_size * c.dim
    weights = STATE_BYTES * (params.non_embedding / work.ranks + ends)
    return Estimate(
        bytes=sum(received),
        heaviest=max(received),
        seconds=work_seconds + max(0.0, hops - work.microbatches * work.virtual * chunk),
        bare=work_seconds + hops,
        bubble=(work.ranks - 1) / (work.microbatches * work.virtual + work.ranks - 1),
        memory=weights + activations + sources,
        sources=sources,
    )


def compare(c: ModelConfig, work: Work, machine: Machine) -> list[tuple[str, bool, Estimate]]:
    """Label, caching and cost of the model's ``rivals``; only Block and Full have what to cache."""
    return [
        (
            model.residual.label,
            caching,
            estimate(model, replace(work, caching=caching), machine),
        )
        for model in rivals(c)
        for caching in (True, False)
        if caching or model.residual.name in ("block", "full")
    ]


def rivals(c: ModelConfig) -> Iterator[ModelConfig]:
    """The model as the baseline, Block as in ``c`` or of 8 blocks, Full and mHC. Raises ValueError
    for one that does not fit its depth.
    """
    block = c.residual if c.residual.name == "block" else BlockConfig()
    for variant in (BaselineConfig(), block, FullConfig(), MHCConfig()):
        yield replace(c, residual=variant)
