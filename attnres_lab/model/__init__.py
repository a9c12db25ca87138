"""The network: trunk, initialisation, parameters and FLOPs, decoding."""

from attnres_lab.model.transformer import (
    Attention,
    KVCache,
    ModelConfig,
    SwiGLU,
    Transformer,
    rope_angles,
    rotate,
)

__all__ = [
    "Attention",
    "KVCache",
    "ModelConfig",
    "SwiGLU",
    "Transformer",
    "rope_angles",
    "rotate",
]
