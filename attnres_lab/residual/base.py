"""The seam: what the trunk asks of a residual connection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

#: Input [B, T, D] to output [B, T, D]. Softmax attention also takes the keywords ``kv_BTD`` and
#: ``values`` of ``mixers.attention.Attention.forward``.
Sublayer = Callable[..., Tensor]
#: Called with (index of the read, names of its sources, weights [S, B, T]); the index of the output
#: read is ``num_sublayers``.
Observer = Callable[[int, tuple[str, ...], Tensor], None]


@dataclass(frozen=True)
class ResidualConfig:
    """Base of all variants' configs; ``name`` is the registry key."""

    name: str = ""
    #: Options that came after runs had been recorded: at their default they are no part of a run's
    #: identity.
    later: ClassVar[tuple[str, ...]] = ()

    @property
    def label(self) -> str:
        """What tables, tags and run names call this variant."""
        return self.name

    @property
    def has_queries(self) -> bool:
        """Whether there are pseudo-queries."""
        return False

    @property
    def needs_attention(self) -> bool:
        """Whether it calls token mixers with keywords that only softmax attention has."""
        return False

    def on(self, kv_heads: int) -> ResidualConfig:
        """This config with the numbers that it takes from the trunk filled in."""
        return self

    def check(self, num_sublayers: int, dim: int) -> None:
        """Raise ValueError, with the key and the remedy, for options that make no sense together or
        on this depth and width.
        """


class Residual(nn.Module, ABC):
    """How sublayer outputs are combined over depth. Shapes: B batch, T time, D width.

    Draws no random numbers at construction: variants of one seed share the trunk's weights, and
    what is to start at random ``draw`` takes from a generator of its own. Unless
    ``starts_as_baseline`` is False, computes the PreNorm baseline before training. ``state`` is the
    variant's own business.
    """

    Config: ClassVar[type[ResidualConfig]]
    #: Whether, with ``recompute``, it checkpoints sublayers itself, together with its reads.
    checkpoints: bool = False
    starts_as_baseline: bool = (
        True  # False, with the reason beside it, for methods or options that cannot
    )

    def __init__(self, config: Any, num_sublayers: int, dim: int, norm_eps: float) -> None:
        super().__init__()
        self.config, self.num_sublayers, self.dim, self.norm_eps = (
            config,
            num_sublayers,
            dim,
            norm_eps,
        )
        self.recompute = False  # set by the model: activation checkpointing is on
        self.apart = False  # set by a pipeline: other processes go on with the state
        self.observer: Observer | None = (
            None  # set by probes; reads report their depth weights to it
        )

    @abstractmethod
    def start(self, x_BTD: Tensor) -> Any:
        """State from the embedding."""

    @abstractmethod
    def step(self, state: Any, sublayer: Sublayer, index: int) -> Any:
        """State after sublayer ``index`` (from 0), which maps its input [B, T, D] to its output [B,
        T, D].
        """

    @abstractmethod
    def finish(self, state: Any) -> Tensor:
        """Final hidden state [B, T, D], before the final norm."""

    def carry(self, state: Any, index: int) -> dict[str, Tensor]:
        """What another process needs to go on with sublayer ``index``, as named tensors (batch
        first, in the dtype of the embedding); ``apart`` is set. A name stands for one tensor
        through the whole depth, so that a process needs to be sent it once: what changes from
        sublayer to sublayer has the index in its name.

        Raises NotImplementedError for a variant that does not say how its state is carried.
        """
        if not isinstance(state, Tensor):
            raise NotImplementedError(
                f"{self.config.label} does not say how its state is carried between processes; "
                "give it carry and resume (docs/pipeline.md)"
            )
        return {f"state@{index}": state}

    def resume(self, tensors: Mapping[str, Tensor], index: int) -> Any:
        """The state before sublayer ``index``, of the tensors that ``carry`` named."""
        return tensors[f"state@{index}"]

    def draw(self, generator: torch.Generator) -> None:
        """Draw, in place, what the config wants to start at random: the pseudo-queries, normal with
        standard deviation ``query_std``. Called once by the model, with a generator of its own.
        """
        std = getattr(self.config, "query_std", 0.0)
        for name, parameter in self.named_parameters():
            if std and name.rpartition(".")[2] == "pseudo_query":
                nn.init.normal_(parameter, std=std, generator=generator)

    def flops_per_token(self) -> int:
        """Forward FLOPs of this variant's matrix products, per token (a multiply and an add are
        two).
        """
        return 0


def exact(x: Tensor) -> torch.autocast:
    """A context without autocast: mixing over depth stays in the streams' own precision, while the
    sublayers run in bf16.
    """
    return torch.autocast(x.device.type, enabled=False)
