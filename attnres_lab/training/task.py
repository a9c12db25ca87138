"""What a run learns, between the module and the data: the network, its batches, loss and metrics.

Shapes: B batch, T time, C channels, S size of an image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from attnres_lab.config import ImagesConfig, RunConfig
from attnres_lab.data import Corpus
from attnres_lab.mixers.base import wide
from attnres_lab.model import Network, Transformer, ViT
from attnres_lab.training.datamodule import CorpusDataModule, ImageDataModule, StepDataModule


class Task(ABC):
    """A task of a run. ``scores`` names what is averaged over the examples of the validation set,
    the loss first.
    """

    scores: ClassVar[tuple[str, ...]] = ("loss",)

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @abstractmethod
    def network(self) -> Network:
        """A new network, its weights drawn from the run's seed."""

    @abstractmethod
    def data(self, *, progress: bool = False) -> StepDataModule:
        """Its batches, not yet read."""

    @abstractmethod
    def loss(self, network: Any, batch: Any) -> Tensor:
        """Mean cross-entropy in nats per token or image, in fp32 at least."""

    @abstractmethod
    def score(self, network: Any, batch: Any) -> tuple[int, tuple[float, ...]]:
        """Number of examples in a batch, and the means of the ``scores`` over them."""

    def validation(self, means: list[float], dataset: Any) -> dict[str, float]:
        """What a report calls the means over the validation set of ``dataset``."""
        return {f"val/{name}": mean for name, mean in zip(self.scores, means, strict=True)}


class Language(Task):
    """Batches are tokens [B, T + 1]. Where the data is a corpus that knows the bytes of a token,
    ``val/bpb`` are the bits per byte.
    """

    def network(self) -> Transformer:
        return Transformer(self.config.model, self.config.seed)

    def data(self, *, progress: bool = False) -> CorpusDataModule:
        return CorpusDataModule(self.config, progress=progress)

    def loss(self, network: Any, batch: Tensor) -> Tensor:
        logits_BTV = network(batch[:, :-1])
        return F.cross_entropy(wide(logits_BTV.flatten(0, 1)), batch[:, 1:].flatten())

    def score(self, network: Any, batch: Tensor) -> tuple[int, tuple[float, ...]]:
        return len(batch), (float(self.loss(network, batch)),)

    def validation(self, means: list[float], dataset: Any) -> dict[str, float]:
        found = super().validation(means, dataset)
        if isinstance(dataset, Corpus):
            found["val/bpb"] = means[0] / math.log(2) / dataset.bytes_per_token
        return found


class Images(Task):
    """Batches are pairs of images [B, C, S, S] of bytes and labels [B]; ``val/accuracy`` is the
    share of images whose class is the likeliest.
    """

    scores = ("loss", "accuracy")

    def network(self) -> ViT:
        task = self.config.task
        assert isinstance(task, ImagesConfig)
        return ViT(self.config.model, task.image, self.config.seed)

    def data(self, *, progress: bool = False) -> ImageDataModule:
        return ImageDataModule(self.config)

    def loss(self, network: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        images_BCSS, labels_B = batch
        return F.cross_entropy(wide(network(images_BCSS)), labels_B)

    def score(self, network: Any, batch: tuple[Tensor, Tensor]) -> tuple[int, tuple[float, ...]]:
        images_BCSS, labels_B = batch
        logits_BK = wide(network(images_BCSS))
        right = (logits_BK.argmax(-1) == labels_B).to(torch.float64).mean()
        return len(labels_B), (float(F.cross_entropy(logits_BK, labels_B)), float(right))


#: Tasks by ``task.name``.
TASKS: dict[str, type[Task]] = {"language": Language, "images": Images}


def make_task(config: RunConfig) -> Task:
    """The task of a run."""
    return TASKS[config.task.name](config)
