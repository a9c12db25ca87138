"""A run in float64, whatever its layout, so that layouts differ by rounding alone:
``python double.py FOLDER``, started by the tests.
"""

import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl

from attnres_lab.config import load
from attnres_lab.training import run as training


class Trainer(pl.Trainer):
    """Lightning's, in float64, which keeps every checkpoint beside the last."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**(options | {"precision": "64-true"}))

    def save_checkpoint(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        super().save_checkpoint(filepath, *args, **kwargs)
        if self.is_global_zero:
            shutil.copy(filepath, Path(filepath).with_name(f"{self.global_step}.ckpt"))


if __name__ == "__main__":
    with (
        patch.object(pl, "Trainer", Trainer),
        # this process is a rank itself
        patch.object(
            training,
            "_run_ranks",
            lambda config, files: training._run(config, files, training.Extra()),
        ),
    ):
        training.run(load(Path(sys.argv[1]) / "config.yaml"), sys.argv[1])
