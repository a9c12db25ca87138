"""The network: trunk, initialisation, parameters and FLOPs, decoding."""

from attnres_lab.model.transformer import Cache, ModelConfig, Transformer

__all__ = ["Cache", "ModelConfig", "Transformer"]
