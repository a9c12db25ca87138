"""Corpora: prepared once into memory-mapped shards, read by index arithmetic; and images."""

from attnres_lab.data.build import prepare, prepared
from attnres_lab.data.config import DataConfig, SourceConfig
from attnres_lab.data.corpus import Corpus
from attnres_lab.data.images import ImageSet, ImageSourceConfig, load_images

__all__ = [
    "Corpus",
    "DataConfig",
    "ImageSet",
    "ImageSourceConfig",
    "SourceConfig",
    "load_images",
    "prepare",
    "prepared",
]
