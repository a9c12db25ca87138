"""Runs of two ranks in float64, so that layouts differ by rounding alone, one after the other in
the same processes: ``python double.py QUEUE``, started by the tests.
"""

import os
import shutil
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl

from attnres_lab.config import load
from attnres_lab.runs.lock import LOCKED
from attnres_lab.training import run as training


class Trainer(pl.Trainer):
    """Lightning's, in float64, which keeps every checkpoint beside the last."""

    def fit(self, model: Any, *args: Any, **kwargs: Any) -> None:
        # its own float64 is not for FSDP
        super().fit(model.double(), *args, **kwargs)

    def save_checkpoint(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        super().save_checkpoint(filepath, *args, **kwargs)
        if self.is_global_zero:
            shutil.copy(filepath, Path(filepath).with_name(f"{self.global_step}.ckpt"))


def train(folder: Path) -> None:
    """The run of a folder, in this process as one of its ranks."""
    with (
        patch.object(pl, "Trainer", Trainer),
        patch.object(
            training,
            "_run_ranks",
            lambda config, files: training._run(config, files, training.Extra()),
        ),
    ):
        training.run(load(folder / "config.yaml"), folder)


def serve(queue: Path) -> None:
    """Train in the folder that each file of the queue names, in the order of their numbers;
    Lightning starts the second rank, which does the same.
    """
    for number in count():
        file = queue / str(number)
        while not file.exists():
            time.sleep(0.05)
        os.environ[LOCKED] = file.read_text()
        train(Path(file.read_text()))
        if os.environ.get("LOCAL_RANK", "0") == "0":
            (queue / f"{number}.done").touch()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
