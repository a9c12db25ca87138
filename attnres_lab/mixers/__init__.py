"""What the sublayers are: the seam, and the registries (a line each)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from attnres_lab.errors import nearest
from attnres_lab.mixers.attention import AttentionConfig, LocalConfig
from attnres_lab.mixers.base import Mixer, MixerConfig, State
from attnres_lab.mixers.kda import KDAConfig
from attnres_lab.mixers.mla import MLAConfig
from attnres_lab.mixers.moe import MoEConfig
from attnres_lab.mixers.swiglu import MLPConfig, SwiGLUConfig
from attnres_lab.plugins import Registry


@dataclass(frozen=True)
class MixersConfig:
    """Token mixers over depth. The registry: a field per mixer, with its options."""

    pattern: tuple[str, ...] = ("attention",)  # repeated over the layers
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    kda: KDAConfig = field(default_factory=KDAConfig)
    mla: MLAConfig = field(default_factory=MLAConfig)

    def at(self, layer: int) -> MixerConfig:
        """The token mixer of this layer (from 0)."""
        config: MixerConfig = getattr(self, self.pattern[layer % len(self.pattern)])
        return config

    def check(self, num_layers: int) -> None:
        """Raises ValueError with the key and the remedy."""
        known = [f.name for f in fields(self) if f.name != "pattern"]
        for name in self.pattern:
            if name not in known:
                raise ValueError(
                    f"model.mixers.pattern: unknown mixer '{name}'{nearest(name, known)}; known: "
                    f"{', '.join(known)}"
                )
        if not self.pattern or num_layers % len(self.pattern):
            raise ValueError(
                f"model.mixers.pattern: {len(self.pattern)} entries do not divide model.num_layers "
                f"= {num_layers}; repeat a pattern that does, or name the mixer of every layer"
            )
        for name in known:
            if name not in self.pattern and getattr(self, name) != type(getattr(self, name))():
                raise ValueError(
                    f"model.mixers.{name}: options of a mixer that model.mixers.pattern does not "
                    "use; add it to the pattern or leave them out"
                )


#: Channel mixers by ``model.mlp.name``.
MLPS: Registry[MLPConfig] = Registry(
    "attnres.mlp", MLPConfig, {"swiglu": SwiGLUConfig, "moe": MoEConfig}
)

__all__ = [
    "MLPS",
    "AttentionConfig",
    "KDAConfig",
    "LocalConfig",
    "MLAConfig",
    "MLPConfig",
    "Mixer",
    "MixerConfig",
    "MixersConfig",
    "MoEConfig",
    "State",
    "SwiGLUConfig",
]
