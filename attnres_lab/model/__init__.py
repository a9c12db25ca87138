"""The network: trunk, initialisation, parameters and FLOPs, decoding."""

from attnres_lab.model.transformer import Cache, ModelConfig, Network, Transformer
from attnres_lab.model.vit import ImageShape, ViT

__all__ = ["Cache", "ImageShape", "ModelConfig", "Network", "Transformer", "ViT"]
