"""Attention Residuals, Full and Block (arXiv 2603.15031, section 3: h_l = sum_i alpha_{i->l} v_i);
the options of a read are in reads.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnres_lab import ops
from attnres_lab.ops import decoding, twophase
from attnres_lab.ops.decoding import Decoding
from attnres_lab.ops.lean import wide
from attnres_lab.ops.reads import Reads
from attnres_lab.ops.twophase import TwoPhase
from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer
from attnres_lab.residual.reads import ReadConfig, input_query, parameters


class Sources(NamedTuple):
    """Completed sources (the embedding first), the open partial sum of the current block, and the
    parameters of each read.
    """

    done: tuple[Tensor, ...]
    partial: Tensor | None
    parameters: tuple[dict[str, Tensor], ...]


State = Sources | TwoPhase | Decoding


@dataclass(frozen=True)
class FullConfig(ReadConfig):
    """Every sublayer output is a source, or with ``window`` the embedding and the latest ``window``
    outputs (for the output read too).
    """

    name: str = "full"
    window: int | None = None

    @property
    def suffix(self) -> str:
        return super().suffix + (f"-w{self.window}" if self.window is not None else "")

    @property
    def label(self) -> str:
        return f"full{self.suffix}"

    def check(self, num_sublayers: int, dim: int) -> None:
        super().check(num_sublayers, dim)
        if self.window is not None and not 1 <= self.window < num_sublayers:
            raise ValueError(
                f"model.residual.window: {self.window} is not within 1 and {num_sublayers - 1}; "
                "leave it out to see all sublayers"
            )
        if self.window is not None and not self.output_read:
            raise ValueError(
                "model.residual.output_read: the sum of all outputs would see past the window; "
                "leave one of the two out"
            )

    def ends(self, num_sublayers: int) -> tuple[int, ...]:
        """How many sublayers have run when each block closes."""
        return tuple(range(1, num_sublayers + 1))


@dataclass(frozen=True)
class BlockConfig(ReadConfig):
    """Exactly one of ``block_size`` (sublayers in a block; the last block may be shorter) and
    ``num_blocks`` (sizes differ by one at most).
    """

    name: str = "block"
    num_blocks: int | None = None  # with neither: 8, the paper's recommendation
    block_size: int | None = None

    def __post_init__(self) -> None:
        if self.num_blocks is None and self.block_size is None:
            object.__setattr__(self, "num_blocks", 8)

    @property
    def label(self) -> str:
        return (
            f"block{self.num_blocks}" if self.num_blocks else f"block-s{self.block_size}"
        ) + self.suffix

    def check(self, num_sublayers: int, dim: int) -> None:
        super().check(num_sublayers, dim)
        if self.num_blocks is not None and self.block_size is not None:
            raise ValueError("model.residual: block takes num_blocks or block_size, not both")
        key, value = (
            ("num_blocks", self.num_blocks)
            if self.block_size is None
            else ("block_size", self.block_size)
        )
        if value is None or not 1 <= value <= num_sublayers:
            raise ValueError(
                f"model.residual.{key}: {value} is not within 1 and the {num_sublayers} sublayers "
                "(two per layer)"
            )

    def ends(self, num_sublayers: int) -> tuple[int, ...]:
        """How many sublayers have run when each block closes."""
        if self.block_size:
            return (*range(self.block_size, num_sublayers, self.block_size), num_sublayers)
        count = self.num_blocks or 1
        return tuple(-(-n * num_sublayers // count) for n in range(1, count + 1))


class AttnRes(Residual):
    """Depth attention over block sums; Full is blocks of one sublayer.

    Read l has ``1 + closed blocks + (1 if the block is open)`` sources. The first read has one
    source, hence no choice and no parameters: a query there would never get a gradient.
    """

    Config: ClassVar[type[ResidualConfig]] = FullConfig
    checkpoints = True

    def __init__(
        self, config: FullConfig | BlockConfig, num_sublayers: int, dim: int, norm_eps: float
    ) -> None:
        super().__init__(config, num_sublayers, dim, norm_eps)
        self.ends = config.ends(num_sublayers)
        self.window = config.window if isinstance(config, FullConfig) else None
        # what has left the window is missing from the sum; other queries than zero choose
        self.starts_as_baseline = self.window is None and not config.query_std
        self.weighing = config.weighing
        self.reads = Reads(self.ends, norm_eps, self.weighing, self.window, config.output_read)
        # reads 1 .. L-1, and the output read
        self.counts = [self.num_sources(index) for index in range(1, self.reads.count + 1)]
        for name, parameter in parameters(config, self.counts, dim).items():
            self.register_parameter(name, parameter)

    def start(self, x_BTD: Tensor) -> State:
        if self.config.query == "learned" and not self.apart:
            first = next(self.parameters())
            if decoding.serves(x_BTD):
                return Decoding(x_BTD, self._queries(wide), self.reads)
            if twophase.serves(x_BTD, first) and not (self.recompute and self.training):
                return TwoPhase.start(x_BTD, self._queries(), self.reads)
        return Sources((x_BTD,), None, self.per_read())

    def _queries(self, to: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """Of all reads, as the schedules take them: [R, D], or learned logits by slot."""
        named = {name: to(parameter) for name, parameter in self.named_parameters()}
        if "scalars" in named:
            return self.weighing.query(self.reads.logits(named["scalars"]), None)
        return self.weighing.query(named["pseudo_query"], named.get("key_gain"))

    def per_read(self) -> tuple[dict[str, Tensor], ...]:
        """The parameters of each read. One unbind per forward pass: indexing in every read would
        build a full-size gradient each time.
        """
        parts = {
            name: parameter.split(self.counts) if name == "scalars" else parameter.unbind()  # type: ignore[no-untyped-call]
            for name, parameter in self.named_parameters()
        }
        return tuple(
            dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)
        )

    def step(self, state: State, sublayer: Sublayer, index: int) -> State:
        out_BTD = self._run(state, sublayer, index)
        if isinstance(state, TwoPhase | Decoding):
            return state.push(out_BTD)
        open_sum = out_BTD if state.partial is None else state.partial + out_BTD
        if index + 1 in self.ends:
            return state._replace(done=(*state.done, open_sum), partial=None)
        return state._replace(partial=open_sum)

    def carry(self, state: Any, index: int) -> dict[str, Tensor]:
        done = state.done
        first = max(1, len(done) - self.window) if self.window else 1
        named = {"embedding": done[0]}
        named |= {f"block{n}": done[n] for n in range(first, len(done))}
        return named if state.partial is None else named | {f"partial@{index}": state.partial}

    def resume(self, tensors: Mapping[str, Tensor], index: int) -> Any:
        closed = sum(end <= index for end in self.ends)
        # no read looks at what has left the window: the embedding holds its place
        first = tensors["embedding"]
        done = (first, *(tensors.get(f"block{n}", first) for n in range(1, closed + 1)))
        return Sources(done, tensors.get(f"partial@{index}"), self.per_read())

    def _run(self, state: State, sublayer: Sublayer, index: int) -> Tensor:
        """The output of a sublayer. With ``recompute`` its read is made again with it, so that
        nothing is kept but the sources.
        """

        def read_and_run(*_: Tensor) -> Tensor:
            h_BTD = self._read(state, index)
            # under autocast a sublayer ends in bf16; the stream stays fp32, as the baseline's sum
            return sublayer(h_BTD).to(h_BTD.dtype)

        if not (self.recompute and self.training and isinstance(state, Sources)):
            return read_and_run()
        again = checkpoint(read_and_run, *self._sources(state), use_reentrant=False)
        assert isinstance(again, Tensor)
        return again

    def finish(self, state: State) -> Tensor:
        if self.config.output_read:
            return self._read(state, self.num_sublayers)
        if isinstance(state, TwoPhase):
            return state.sum()
        return state.read() if isinstance(state, Decoding) else torch.stack(state.done).sum(0)

    def _read(self, state: State, index: int) -> Tensor:
        """What enters sublayer ``index``; the weights go to the observer."""
        if isinstance(state, TwoPhase | Decoding):
            h_BTD = state.read()
            weights = state.weights
        elif index == 0:
            h_BTD = state.done[0]
        else:
            named, sources = state.parameters[index - 1], self._sources(state)
            if (projection := named.get("projection")) is not None:
                query = input_query(sources[-1], projection, self.norm_eps)
            else:
                query = named["scalars" if "scalars" in named else "pseudo_query"]
            read = (sources, query, named.get("key_gain"), self.norm_eps, self.weighing)
            h_BTD = ops.depth_attention(*read)
            weights = partial(ops.depth_weights, *read)
        if index == 0:
            return h_BTD
        if self.observer is not None:
            with torch.no_grad():
                self.observer(index, self._names(index), weights())
        if self.config.scale == "sum":
            h_BTD = h_BTD * (2 if self.config.mixing == "sigmoid" else self.num_sources(index))
        return h_BTD

    def _sources(self, state: Sources) -> tuple[Tensor, ...]:
        """What the next read sees."""
        if state.partial is not None:
            return (*state.done, state.partial)
        first = max(1, len(state.done) - self.window) if self.window else 1
        return state.done[:1] + state.done[first:]

    def _names(self, index: int) -> tuple[str, ...]:
        """Names of the sources of the read before sublayer ``index``."""
        unit = "f" if len(self.ends) == self.num_sublayers else "b"
        closed = [f"{unit}{n}" for n, end in enumerate(self.ends, 1) if end <= index]
        return (
            "embedding",
            *closed[-(self.window or len(closed)) :],
            *(() if index in self.ends else ("partial",)),
        )

    def num_sources(self, index: int) -> int:
        """Sources of the read before sublayer ``index``; ``num_sublayers`` is the output read."""
        closed = sum(end <= index for end in self.ends)
        return 1 + min(closed, self.window or closed) + (index > 0 and index not in self.ends)

    def flops_per_token(self) -> int:
        """A logit (but for static mixing) and a weighted value per source, 2 D each; for the input
        query a product of 2 D D per read.
        """
        per_source = 2 * self.dim if self.config.mixing == "static" else 4 * self.dim
        per_read = 2 * self.dim**2 if self.config.query == "input" else 0
        return per_source * sum(self.counts) + per_read * len(self.counts)


class Block(AttnRes):
    """AttnRes over blocks of several sublayers."""

    Config = BlockConfig
