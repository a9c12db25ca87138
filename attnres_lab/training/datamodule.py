"""The corpus as a LightningDataModule, whose batches are a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from attnres_lab.config import RunConfig
from attnres_lab.data import Corpus, prepare

CHECKED_BYTES = 2**30  # of shards whose checksums are compared before each use


class CorpusDataModule(pl.LightningDataModule):
    """Batches of tokens [B, T + 1] of the run's corpus, this rank's share of them.

    Training batches are micro-batches where the config has them: give the Trainer
    ``accumulate_grad_batches=config.train.accumulate``. Raises UserError for data that cannot be
    read, are too short or differ from their checksums.
    """

    def __init__(self, config: RunConfig, *, progress: bool = False) -> None:
        super().__init__()
        self.config, self.progress = config, progress

    @cached_property
    def corpus(self) -> Corpus:
        """Prepared at the first use, its checksums compared."""
        corpus = prepare(self.config.data, progress=self.progress)
        corpus.verify(CHECKED_BYTES)
        return corpus

    def prepare_data(self) -> None:
        self.corpus  # noqa: B018  on one rank first

    def train_dataloader(self) -> TrainBatches:
        return TrainBatches(self)

    def val_dataloader(self) -> torch.utils.data.DataLoader[Tensor]:
        return torch.utils.data.DataLoader(ValidationBatches(self), batch_size=None)


class TrainBatches(IterableDataset[Tensor]):
    """From the Trainer's step on: an interrupted run goes on with the very batch that is due."""

    def __init__(self, data: CorpusDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Tensor]:
        config, trainer = self.data.config, self.data.trainer
        assert trainer is not None
        rows = slice(trainer.global_rank, None, trainer.world_size)
        step, t = trainer.global_step, config.train
        while config.steps is None or step < config.steps:
            batch = self.data.corpus.train_batch(
                config.seed, step, t.batch_size, config.data.seq_len, rows
            )
            yield from torch.split(torch.from_numpy(batch), t.micro)
            step += 1


class ValidationBatches(Dataset[Tensor]):
    """The corpus's fixed validation set; each rank has every world-th batch."""

    def __init__(self, data: CorpusDataModule) -> None:
        d, trainer = data.config.data, data.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        batches = data.corpus.val_batches(d.seq_len, data.config.train.micro, d.val_tokens)
        self.batches = [b for index, b in enumerate(batches) if index % world == rank]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.batches[index])
