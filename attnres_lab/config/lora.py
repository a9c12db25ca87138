"""The section ``optim.lora``: adapters beside a frozen trunk."""

from __future__ import annotations

from dataclasses import dataclass

from attnres_lab.errors import nearest
from attnres_lab.model import ModelConfig
from attnres_lab.model.flops import adapter_flops_per_token

ALL = "all"


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685): W x becomes W x + alpha / rank B A x, of which A
    and B are trained, as matrices of the trunk, and W is not.

    ``kv``, ``gate_up`` and ``qkv`` are one map each, so their parts share an A.
    """

    rank: int | None = None  # None: no adapters
    alpha: float = 16.0
    targets: tuple[str, ...] = (ALL,)  # linear maps of the sublayers, by name: q, kv, out, ...

    def check(self, model: ModelConfig, strategy: str) -> None:
        """Raises ValueError with the key and the remedy."""
        default = LoraConfig()
        if self.rank is None:
            for key in ("alpha", "targets"):
                if getattr(self, key) != getattr(default, key):
                    raise ValueError(
                        f"optim.lora.{key}: without optim.lora.rank there are no adapters; give a "
                        "rank, for example 8, or leave it out"
                    )
            return
        if self.rank < 1:
            raise ValueError(
                f"optim.lora.rank: {self.rank} is not positive; leave it out for no adapters"
            )
        if self.alpha <= 0:
            raise ValueError(f"optim.lora.alpha: {self.alpha} is not positive")
        known = model.linear_maps
        if not self.targets:
            raise ValueError(f"optim.lora.targets: none is named; take some of {', '.join(known)}")
        for name in self.targets:
            if name not in (ALL, *known):
                raise ValueError(
                    f"optim.lora.targets: no sublayer has a linear map "
                    f"'{name}'{nearest(name, (ALL, *known))}"
                )
        if strategy == "pipeline":
            raise ValueError(
                "optim.lora.rank: a pipeline has no adapters; take another train.strategy"
            )

    def flops_per_token(self, model: ModelConfig) -> int:
        """What they add to a training step, per token."""
        if self.rank is None:
            return 0
        names = tuple(name for name in model.linear_maps if self.covers(name))
        return adapter_flops_per_token(model, self.rank, names)

    def covers(self, name: str) -> bool:
        """Whether the linear map of this name, within its sublayer, has an adapter."""
        return ALL in self.targets or name in self.targets
