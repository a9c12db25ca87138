"""Pretrained models in and out, in the formats of Hugging Face (the extra ``hf``)."""

from attnres_lab.pretrained.convert import convert
from attnres_lab.pretrained.export import export

__all__ = ["convert", "export"]
