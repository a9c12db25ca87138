"""Attention Residuals, put to the test.

``load(path, overrides)`` reads a run YAML, ``run(config, folder)`` trains it; ``LitTransformer``
and ``CorpusDataModule`` or ``ImageDataModule`` are what any ``pl.Trainer`` takes. They are imported
when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnres_lab.config import load
    from attnres_lab.training.datamodule import CorpusDataModule, ImageDataModule
    from attnres_lab.training.module import LitTransformer
    from attnres_lab.training.run import run

__version__ = "0.1.0"
__all__ = ["CorpusDataModule", "ImageDataModule", "LitTransformer", "load", "run"]

_HOMES = {
    "load": "config",
    "run": "training.run",
    "LitTransformer": "training.module",
    "CorpusDataModule": "training.datamodule",
    "ImageDataModule": "training.datamodule",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
