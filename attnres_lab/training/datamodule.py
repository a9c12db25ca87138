"""The data as LightningDataModules, whose batches are a pure function of (seed, step)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from attnres_lab.config import ImagesConfig, RunConfig
from attnres_lab.data import Corpus, ImageSet, load_images, prepare
from attnres_lab.data.corpus import drawn
from attnres_lab.errors import UserError

CHECKED_BYTES = 2**30  # of shards whose checksums are compared before each use


class StepDataModule(pl.LightningDataModule, ABC):
    """Batches by step, this rank's share of them.

    Training batches are micro-batches where the config has them: give the Trainer
    ``accumulate_grad_batches=config.train.accumulate``. ``dataset`` has a ``fingerprint`` and a
    ``manifest``; reading it raises UserError for data that cannot be read or do not fit the config.
    """

    dataset: Any
    val_stride = 1  # validation is on every so many-th example
    val_own: float = math.inf  # batches of the newest validation loader that count at this rank

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def train_batch(self, step: int, rows: slice) -> Iterator[Any]:
        """The micro-batches of a step, of those ``rows`` of its batch."""

    @abstractmethod
    def val_batches(self) -> Iterator[Any]:
        """The fixed validation set."""

    @property
    @abstractmethod
    def val_examples(self) -> int:
        """Examples of the whole validation set."""

    def prepare_data(self) -> None:
        self.dataset  # noqa: B018  on one rank first

    def train_dataloader(self) -> TrainBatches:
        return TrainBatches(self)

    def val_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        # a loader draws a number, which is not to come from training's random state
        generator, batches = torch.Generator(), ValidationBatches(self)
        self.val_own = batches.own
        return torch.utils.data.DataLoader(batches, batch_size=None, generator=generator)


class CorpusDataModule(StepDataModule):
    """Batches of tokens [B, T + 1] of the corpus of ``config``; ``progress`` shows it prepared."""

    def __init__(self, config: RunConfig, *, progress: bool = False) -> None:
        super().__init__(config)
        self.progress = progress

    @cached_property
    def dataset(self) -> Corpus:
        """Prepared at the first use, its checksums compared. Raises UserError, see above."""
        corpus = prepare(self.config.data, progress=self.progress)
        corpus.verify(CHECKED_BYTES)
        if corpus.vocab_size > self.config.model.vocab_size:
            raise UserError(
                f"model.vocab_size: {self.config.model.vocab_size} is less than the tokenizer's "
                f"{corpus.vocab_size}; set it to that"
            )
        return corpus

    def train_batch(self, step: int, rows: slice) -> Iterator[Tensor]:
        c = self.config
        size = c.train.batch_size
        batch = self.dataset.train_batch(c.seed, step, size, c.data.seq_len, rows)
        yield from torch.split(torch.from_numpy(batch), c.train.loaded)

    def val_batches(self) -> Iterator[Tensor]:
        d, rows = self.config.data, self.config.train.micro
        for batch in self.dataset.val_batches(d.seq_len, rows, d.val_tokens, self.val_stride):
            yield torch.from_numpy(batch)

    @property
    def val_examples(self) -> int:
        d = self.config.data
        return min(self.dataset.windows("val", d.seq_len), d.val_tokens // d.seq_len)


class ImageDataModule(StepDataModule):
    """Batches of images [B, C, S, S] of bytes and labels [B] of the images of ``config``;
    validation is on all of the second split.
    """

    @cached_property
    def dataset(self) -> ImageSet:
        """Read at the first use. Raises UserError, see ``StepDataModule``."""
        task = self.config.task
        assert isinstance(task, ImagesConfig)
        images = load_images(task.source)
        images.check(task.image.size, task.image.channels, task.image.classes)
        return images

    def train_batch(self, step: int, rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
        c, total = self.config, len(self.dataset.labels["train"])
        yield from self._split("train", drawn(c.seed, step, c.train.batch_size, total, rows))

    def val_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._split("val", slice(None, None, self.val_stride))

    @property
    def val_examples(self) -> int:
        return len(self.dataset.labels["val"])

    def _split(self, split: str, chosen: Any) -> Iterator[tuple[Tensor, Tensor]]:
        arrays = (self.dataset.images[split][chosen], self.dataset.labels[split][chosen])
        parts = (torch.split(torch.tensor(array), self.config.train.micro) for array in arrays)
        yield from zip(*parts, strict=True)


def _share(config: RunConfig, trainer: pl.Trainer | None) -> tuple[int, None, int]:
    """Which share of the data is this process's, of how many."""
    if trainer is None:
        return 0, None, 1
    shares = config.train.replicas if config.train.strategy == "pipeline" else trainer.world_size
    return trainer.global_rank * shares // trainer.world_size, None, shares


class TrainBatches(IterableDataset[Any]):
    """From the Trainer's step on: an interrupted run goes on with the very batch that is due."""

    def __init__(self, data: StepDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        config, trainer = self.data.config, self.data.trainer
        assert trainer is not None
        rows = slice(*_share(config, trainer))
        step = trainer.global_step
        while config.steps is None or step < config.steps:
            yield from self.data.train_batch(step, rows)
            step += 1


class ValidationBatches(Dataset[Any]):
    """The fixed validation set; each rank has every world-th batch. Where that gives some a batch
    more than others, these have one that does not count behind their ``own``: a forward pass of
    FSDP, and the sum over ranks, wait for all.
    """

    def __init__(self, data: StepDataModule) -> None:
        share, _, shares = _share(data.config, data.trainer)
        batches = list(data.val_batches())
        self.batches = batches[share::shares]
        self.own = len(self.batches)
        if self.own < math.ceil(len(batches) / shares):
            self.batches.append(batches[0])

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]
