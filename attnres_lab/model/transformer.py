"""The networks' common part, sublayers under a replaceable residual connection, and the
decoder-only Transformer. Shapes: B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnres_lab.mixers import Mixer, MixerConfig, MixersConfig, MLPConfig, State, SwiGLUConfig
from attnres_lab.model.init import init_weights
from attnres_lab.model.shards import Shards
from attnres_lab.residual import REGISTRY, BaselineConfig, ResidualConfig, Sublayer


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the trunk. ``norm_eps`` matters: depth reads shrink h by about 1/sources
    (docs/decisions).
    """

    vocab_size: int = 256
    dim: int = 64
    num_layers: int = 8
    num_heads: int = 4
    num_kv_heads: int | None = None  # None: as many as num_heads
    mlp_dim: int | None = None  # None: 8/3 dim, rounded up to a multiple of 8
    rope_theta: float = 10_000.0
    qk_norm: bool = False
    tie_embeddings: bool = False
    scale_embeddings: bool = True  # where they are tied: the input is multiplied by sqrt(D)
    norm_eps: float = 1e-6
    activation_checkpointing: bool = False
    residual: ResidualConfig = field(default_factory=BaselineConfig)
    mixers: MixersConfig = field(default_factory=MixersConfig)
    mlp: MLPConfig = field(default_factory=SwiGLUConfig)

    def __post_init__(self) -> None:
        """Raises ValueError with the key and the remedy."""
        for key in ("vocab_size", "dim", "num_layers", "num_heads"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}: {getattr(self, key)} is not positive")
        for key in ("norm_eps", "rope_theta"):
            if getattr(self, key) <= 0:
                raise ValueError(f"model.{key}: {getattr(self, key)} is not positive")
        if self.mlp_dim is not None and self.mlp_dim < 1:
            raise ValueError(
                f"model.mlp_dim: {self.mlp_dim} is not positive; leave it out for 8/3 of model.dim"
            )
        self.mixers.check(self.num_layers)
        for config in dict.fromkeys((*self.sublayers, self.mlp)):
            config.check(self)
        self.connection.check(self.num_sublayers, self.dim)
        self._check_separable()

    def _check_separable(self) -> None:
        if not self.residual.needs_attention:
            return
        for name in self.mixers.pattern:
            if not getattr(self.mixers, name).separable:
                raise ValueError(
                    f"model.mixers.pattern: {self.residual.label} changes the values of softmax "
                    f"attention, and {name} is none; take attention in every layer, or another "
                    "residual (of mudd, ways: r)"
                )

    @property
    def num_sublayers(self) -> int:
        return 2 * self.num_layers

    @property
    def sublayers(self) -> tuple[MixerConfig, ...]:
        """Token mixer, channel mixer, token mixer, ... of all layers."""
        layers = range(self.num_layers)
        return tuple(m for layer in layers for m in (self.mixers.at(layer), self.mlp.at(layer)))

    @property
    def connection(self) -> ResidualConfig:
        """``residual`` with the numbers that it takes from the trunk: ``heads: kv`` filled in."""
        return self.residual.on(self.kv_heads)

    @property
    def linear_maps(self) -> tuple[str, ...]:
        """Names of the sublayers' linear maps, each once."""
        with torch.device("meta"):
            built = [m.build(self) for m in dict.fromkeys(self.sublayers)]
        return tuple(dict.fromkeys(name for mixer in built for name in mixer.linear_maps()))

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def hidden_dim(self) -> int:
        return self.mlp_dim or -(-8 * self.dim // 24) * 8

    @property
    def size(self) -> str:
        """What tables and tags call this size: ``d64-L8``, with the kinds of sublayers where they
        are not the dense Transformer's: ``d64-L8-kda-mla-moe``.
        """
        kinds = list(dict.fromkeys(self.mixers.pattern))
        kinds = [] if kinds == ["attention"] else kinds
        kinds += [] if self.mlp.name == "swiglu" else [self.mlp.name]
        return "-".join([f"d{self.dim}-L{self.num_layers}", *kinds])


@dataclass
class Cache:
    """What decoding keeps: how many positions have passed, and each sublayer's own state."""

    states: list[State]
    length: int = 0
    shards: Shards | None = None  # while a piece is shared out over processes

    @property
    def past(self) -> int:
        """Positions before the first that this process reads next."""
        return self.length + (self.shards.first if self.shards else 0)

    @contextmanager
    def shared(self, shards: Shards) -> Iterator[None]:
        """Inside, what this process reads is its share of a piece."""
        self._share(shards)
        try:
            yield
        finally:
            self._share(None)

    def _share(self, shards: Shards | None) -> None:
        self.shards = shards
        for state in self.states:
            state.shards = shards

    def copy(self) -> Cache:
        """One that goes on by itself; tensors are replaced and never written to."""
        return Cache([State(state) for state in self.states], self.length)


class Network(nn.Module):
    """Sublayers under a residual connection, between an embedding and a head."""

    def __init__(self, config: ModelConfig, embed: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.config = c = config
        self.embed = embed
        self.sublayers = nn.ModuleList(m.build(c) for m in c.sublayers)
        self.norm = nn.RMSNorm(c.dim, eps=c.norm_eps)
        self.head = head
        self.residual = REGISTRY[c.residual.name](c.connection, c.num_sublayers, c.dim, c.norm_eps)
        self.residual.recompute = c.activation_checkpointing

    def draw_embedding(self, generator: torch.Generator) -> None:
        """Draw what comes before the sublayers, in place."""
        raise NotImplementedError

    def through(self, x_BTD: Tensor, cache: Cache | None = None) -> Tensor:
        """What the head reads, [B, T, D]: all sublayers, then the norm."""
        state = self.residual.start(x_BTD)
        for index in range(self.config.num_sublayers):
            state = self.residual.step(state, self.sublayer(index, cache), index)
        if cache is not None:
            cache.length += x_BTD.shape[1] * (cache.shards.size if cache.shards else 1)
        h_BTD: Tensor = self.norm(self.residual.finish(state))
        return h_BTD

    def sublayer(self, index: int, cache: Cache | None = None) -> Sublayer:
        """Sublayer ``index`` as the residual connection calls it."""
        call: Sublayer = self.sublayers[index]
        if cache is not None:
            state, mixer = cache.states[index], self.mixers()[index]
            call = partial(mixer, past=cache.past, state=state)
            if cache.shards and mixer.kind == "attention" and not mixer.extends:
                call = cache.shards.in_turn(call, state)
        if self.residual.recompute and self.training and not self.residual.checkpoints:
            return partial(checkpoint, call, use_reentrant=False)
        return call

    def after_step(self) -> None:
        """Called once after every optimiser step."""
        for sublayer in self.mixers():
            sublayer.after_step()

    def metrics(self) -> dict[str, float]:
        """What the sublayers measured in the last optimiser step, ``{name}/{sublayer:02d}``."""
        return {
            f"{name}/{index:02d}": value
            for index, sublayer in enumerate(self.mixers())
            for name, value in sublayer.metrics().items()
        }

    def mixers(self) -> list[Mixer]:
        """The sublayers, typed."""
        return list(self.sublayers)  # type: ignore[arg-type]


class Transformer(Network):
    """Tokens [B, T] to logits [B, T, V]."""

    embed: nn.Embedding

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        c = config
        head = nn.Linear(c.dim, c.vocab_size, bias=False)
        super().__init__(c, nn.Embedding(c.vocab_size, c.dim), head)
        init_weights(self, seed)
        if c.tie_embeddings:
            self.head.weight = self.embed.weight

    def draw_embedding(self, generator: torch.Generator) -> None:
        std = self.config.dim**-0.5 if self.config.tie_embeddings else 1.0
        nn.init.normal_(self.embed.weight, std=std, generator=generator)

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        logits: Tensor = self.head(self.through(self.enter(tokens_BT), cache))
        return logits

    def enter(self, tokens_BT: Tensor) -> Tensor:
        """What enters the first sublayer, [B, T, D]."""
        x_BTD: Tensor = self.embed(tokens_BT)
        if self.config.tie_embeddings and self.config.scale_embeddings:
            x_BTD = x_BTD * self.config.dim**0.5  # the shared matrix has the head's scale
        return x_BTD

    def leave(self, h_BTD: Tensor) -> Tensor:
        """Logits [B, T, V] of the final hidden state."""
        logits: Tensor = self.head(self.norm(h_BTD))
        return logits

    def cache(self) -> Cache:
        """An empty cache for decoding."""
        return Cache([State() for _ in self.sublayers])
