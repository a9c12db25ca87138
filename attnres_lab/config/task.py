"""The task section of a run: what is learned, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, field

from attnres_lab.data.images import ImageSourceConfig
from attnres_lab.mixers import AttentionConfig
from attnres_lab.model import ImageShape, ModelConfig
from attnres_lab.model.flops import (
    Params,
    image_params,
    image_training_flops,
    num_params,
    training_flops_per_token,
)


@dataclass(frozen=True)
class TaskConfig:
    """Base of all tasks' configs; ``name`` is the registry key. What it does is in
    ``attnres_lab.training.task``.
    """

    name: str = ""

    def tokens(self, seq_len: int) -> int:
        """Positions of an example; ``seq_len`` is that of the data."""
        raise NotImplementedError

    def params(self, model: ModelConfig) -> Params:
        """Parameters of the network."""
        raise NotImplementedError

    def flops_per_token(self, model: ModelConfig, seq_len: int, *, frozen: bool) -> float:
        """Training FLOPs per position; ``frozen``: the trunk has no gradients of its weights."""
        raise NotImplementedError

    def check(self, model: ModelConfig) -> None:
        """Raises ValueError, with the key and the remedy, for a model that cannot learn it."""


@dataclass(frozen=True)
class LanguageConfig(TaskConfig):
    """The next token of the corpus in ``data``."""

    name: str = "language"

    def tokens(self, seq_len: int) -> int:
        return seq_len

    def params(self, model: ModelConfig) -> Params:
        return num_params(model)

    def flops_per_token(self, model: ModelConfig, seq_len: int, *, frozen: bool) -> float:
        return training_flops_per_token(model, seq_len, frozen=frozen)

    def check(self, model: ModelConfig) -> None:
        for key in _attention(model, causal=False):
            raise ValueError(
                f"{key}.causal: false lets a token see the next one, which is to "
                "be predicted; leave it out, or set task.name: images"
            )


@dataclass(frozen=True)
class ImagesConfig(TaskConfig):
    """The class of an image. ``data`` and ``model.vocab_size`` are of no use to it."""

    name: str = "images"
    image: ImageShape = field(default_factory=ImageShape)
    source: ImageSourceConfig = field(default_factory=ImageSourceConfig)

    def tokens(self, seq_len: int) -> int:
        return self.image.patches

    def params(self, model: ModelConfig) -> Params:
        return image_params(model, self.image)

    def flops_per_token(self, model: ModelConfig, seq_len: int, *, frozen: bool) -> float:
        return image_training_flops(model, self.image, frozen=frozen) / self.image.patches

    def check(self, model: ModelConfig) -> None:
        for key in _attention(model, causal=True):
            raise ValueError(
                f"{key}.causal: true hides the patches of an image from those "
                "before them; set it to false"
            )
        if model.tie_embeddings:
            raise ValueError("model.tie_embeddings: a network for images has no embedding to tie")


def _attention(model: ModelConfig, *, causal: bool) -> list[str]:
    """The sections of softmax attention that are so."""
    used = [getattr(model.mixers, name) for name in dict.fromkeys(model.mixers.pattern)]
    return [c.section for c in used if isinstance(c, AttentionConfig) and c.causal == causal]


#: Tasks by ``task.name``.
TASKS: dict[str, type[TaskConfig]] = {"language": LanguageConfig, "images": ImagesConfig}
