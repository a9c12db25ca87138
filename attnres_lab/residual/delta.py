"""Delta Attention Residuals (arXiv 2605.18855): the residual stream plus what depth attention
selects from the sublayer outputs, or from sums of blocks of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnres_lab import ops
from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer


@dataclass(frozen=True)
class DeltaConfig(ResidualConfig):
    """``block_size``: sublayers whose sum is one source (Delta Block). ``gate``: a learned factor
    per read, zero at the start. ``null_source``: a source of zeros, whose logit is always 0.
    """

    name: str = "delta"
    block_size: int = 1
    gate: bool = False
    null_source: bool = False
    query_std: float = 0.0  # of the pseudo-queries at the start
    later = ("block_size", "gate", "null_source", "query_std")

    @property
    def label(self) -> str:
        names = {
            f"s{self.block_size}": self.block_size != 1,
            "gate": self.gate,
            "null": self.null_source,
            f"q{self.query_std:g}": self.query_std != 0,
        }
        return "delta" + "".join(f"-{name}" for name, given in names.items() if given)

    @property
    def has_queries(self) -> bool:
        return True

    def check(self, num_sublayers: int, dim: int) -> None:
        if not 1 <= self.block_size <= num_sublayers:
            raise ValueError(
                f"model.residual.block_size: {self.block_size} is not within 1 and the "
                f"{num_sublayers} sublayers (two per layer)"
            )
        if self.query_std < 0:
            raise ValueError(f"model.residual.query_std: {self.query_std} is negative")
        if self.gate and not self.query_std:
            raise ValueError(
                "model.residual.gate: beside queries at zero neither would learn, since what a "
                "zero query selects is parallel to the stream; set model.residual.query_std, such "
                "as 0.02"
            )


class DeltaState(NamedTuple):
    """The stream; the embedding and the sums of finished blocks; the sum of the open block; and the
    parameters of each read.
    """

    stream: Tensor
    done: tuple[Tensor, ...]
    partial: Tensor | None
    query: tuple[Tensor, ...]
    gain: tuple[Tensor, ...]
    gate: tuple[Tensor, ...]


class Delta(Residual):
    """h_l = stream_l + g_l sum_i alpha_{i->l} v_i, with stream_l the plain sum, alpha as in Full or
    Block AttnRes, and g_l = 1 unless there are gates.

    Choices: the embedding is a source, as in the authors' code; the first sublayer reads the stream
    alone; the output is the stream, without a read. Queries start at zero, unlike the paper's: then
    the selected mean is a fraction of the stream, and the start is the baseline. With a gate they
    start at random and the gate at zero, which is the baseline too.
    """

    Config = DeltaConfig

    def __init__(self, config: DeltaConfig, num_sublayers: int, dim: int, norm_eps: float) -> None:
        super().__init__(config, num_sublayers, dim, norm_eps)
        # other queries than zero choose, unless a gate is shut
        self.starts_as_baseline = config.gate or not config.query_std
        self.pseudo_query = nn.Parameter(torch.zeros(num_sublayers - 1, dim))
        self.key_gain = nn.Parameter(torch.ones(num_sublayers - 1, dim))
        self.gate = nn.Parameter(torch.zeros(num_sublayers - 1)) if config.gate else None

    def start(self, x_BTD: Tensor) -> DeltaState:
        return DeltaState(x_BTD, (x_BTD,), None, *self._per_read())

    def _per_read(self) -> tuple[tuple[Tensor, ...], ...]:
        gate = () if self.gate is None else self.gate.unbind()
        return self.pseudo_query.unbind(), self.key_gain.unbind(), gate

    def step(self, state: DeltaState, sublayer: Sublayer, index: int) -> DeltaState:
        # sources of a read share their dtype
        out_BTD = sublayer(self._hidden(state, index)).to(state.stream.dtype)
        state = state._replace(stream=state.stream + out_BTD)
        open_sum = out_BTD if state.partial is None else state.partial + out_BTD
        if (index + 1) % self.config.block_size == 0:
            return state._replace(done=(*state.done, open_sum), partial=None)
        return state._replace(partial=open_sum)

    def carry(self, state: DeltaState, index: int) -> dict[str, Tensor]:
        named = {f"source{n}": source for n, source in enumerate(state.done)}
        if state.partial is not None:
            named[f"partial@{index}"] = state.partial
        return named | {f"stream@{index}": state.stream}

    def resume(self, tensors: Mapping[str, Tensor], index: int) -> DeltaState:
        count = 1 + index // self.config.block_size
        done = tuple(tensors[f"source{n}"] for n in range(count))
        partial = tensors.get(f"partial@{index}")
        return DeltaState(tensors[f"stream@{index}"], done, partial, *self._per_read())

    def finish(self, state: DeltaState) -> Tensor:
        return state.stream

    def _hidden(self, state: DeltaState, index: int) -> Tensor:
        if index == 0:
            return state.stream
        sources = state.done if state.partial is None else (*state.done, state.partial)
        if self.config.null_source:
            sources = (*sources, torch.zeros_like(state.stream))
        read = (sources, state.query[index - 1], state.gain[index - 1], self.norm_eps)
        if self.observer is not None:
            with torch.no_grad():
                self.observer(index, self._names(state), ops.depth_weights(*read))
        selected_BTD = ops.depth_attention(*read)
        if state.gate:
            selected_BTD = state.gate[index - 1] * selected_BTD
        return state.stream + selected_BTD

    def _names(self, state: DeltaState) -> tuple[str, ...]:
        """Names of the sources of the next read."""
        unit = "f" if self.config.block_size == 1 else "b"
        names = ["embedding", *(f"{unit}{n}" for n in range(1, len(state.done)))]
        names += ["partial"] if state.partial is not None else []
        return (*names, "null") if self.config.null_source else tuple(names)

    def flops_per_token(self) -> int:
        # a logit and a weighted value per source; the read before sublayer ``index`` sees the
        # embedding and the blocks begun so far
        size: int = self.config.block_size
        null: bool = self.config.null_source
        sources = sum(1 + -(-index // size) + null for index in range(1, self.num_sublayers))
        return 4 * self.dim * sources
