"""The seam: what the trunk asks of a sublayer, be it a token mixer or a channel mixer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn


class State(dict[str, Tensor]):
    """What one sublayer keeps between two pieces of a sequence, by its own names."""

    #: While a piece is shared out over processes: ``model.shards.Shards``.
    shards: Any = None

    def extend(self, name: str, new: Tensor, dim: int, keep: int | None = None) -> Tensor:
        """Add the new positions along ``dim``, of all processes that share the piece; the last
        ``keep`` are kept (None: all). Returns those up to this process's last position.
        """
        after = 0
        if self.shards is not None:
            new, after = self.shards.gather(new, dim)
        whole = torch.cat([self[name], new], dim) if name in self else new
        count = whole.shape[dim]
        gone = 0 if keep is None else max(0, count - keep)
        self[name] = whole.narrow(dim, gone, count - gone)
        return whole.narrow(dim, 0, count - after)


class Trunk(Protocol):
    """What a sublayer may know of the model's config."""

    @property
    def dim(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def hidden_dim(self) -> int: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def qk_norm(self) -> bool: ...
    @property
    def norm_eps(self) -> float: ...


@dataclass(frozen=True)
class MixerConfig:
    """Options of one kind of sublayer; its field or line in ``attnres_lab.mixers`` registers it."""

    #: Whether queries, keys and values may have inputs of their own.
    separable: ClassVar[bool] = False

    def build(self, trunk: Trunk) -> Mixer:
        """The sublayer, with weights not yet drawn."""
        raise NotImplementedError

    def check(self, trunk: Trunk) -> None:
        """Raise ValueError, with the key and the remedy, for options that make no sense together or
        on this trunk.
        """


class Mixer(nn.Module, ABC):
    """A sublayer, its PreNorm inside. Shapes: B batch, T time, D width.

    The output of a position depends on it and on those before it in its own sequence (on all of
    them where attention is not causal).
    """

    kind: Literal["attention", "mlp"]  # along the sequence or along the channels
    #: Whether all that it keeps goes through ``State.extend``. Processes that share a piece then
    #: run it at once; else in turn, each from where the one before has left the state.
    extends: ClassVar[bool] = False
    group: Any = None  # the processes that train this sublayer too; None: all

    @abstractmethod
    def forward(self, x_BTD: Tensor, past: int = 0, state: State | None = None) -> Tensor:
        """Output [B, T, D] of the positions ``past .. past + T``. While decoding, ``state`` is what
        the pieces before left, empty at first; it is brought up to date in place.
        """

    @abstractmethod
    def flops_per_token(self, seq_len: int) -> int:
        """Forward FLOPs of the matrix products, per token (a multiply and an add are two)."""

    def weight_flops(self) -> int:
        """Those of the products with weights."""
        return self.flops_per_token(0)

    def idle_params(self) -> int:
        """Parameters that a token does not use."""
        return 0

    def init_weights(self, generator: torch.Generator, num_sublayers: int) -> None:
        """Draw the weights in place: truncated normal with std 1/sqrt(fan in), of the last
        projection (``out``) 1/sqrt(fan in * number of sublayers); biases 0.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                depth = num_sublayers if name.endswith("out") else 1
                draw(module.weight, module.in_features * depth, generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def linear_maps(self) -> dict[str, nn.Linear]:
        """Its linear maps by name; those that are not applied as they are left out."""
        return {n: m for n, m in self.named_modules() if isinstance(m, nn.Linear)}

    def after_step(self) -> None:
        """Called once after every optimiser step."""

    def metrics(self) -> dict[str, float]:
        """Numbers of the last optimiser step, by name."""
        return {}


def draw(weight: Tensor, fan_in: int, generator: torch.Generator) -> None:
    """Fill with a normal of std 1/sqrt(fan in), cut at three standard deviations."""
    std = fan_in**-0.5
    nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std, generator=generator)


def head_width(trunk: Trunk, heads: int, width: int | None, key: str) -> int:
    """Width of a head: as given, else dim / heads. Raises ValueError where it does not divide."""
    if width is None and trunk.dim % heads:
        raise ValueError(
            f"model.{key}: {heads} heads do not divide model.dim = {trunk.dim}; change either"
        )
    return width or trunk.dim // heads


def exact(x: Tensor) -> torch.autocast:
    """A context without autocast."""
    return torch.autocast(x.device.type, enabled=False)


def wide(x: Tensor) -> Tensor:
    """``x`` in fp32, or as it is where it has more digits."""
    return x if x.dtype == torch.float64 else x.float()
