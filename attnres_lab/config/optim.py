"""The optimiser section of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from attnres_lab.config.lora import LoraConfig


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, or Muon for the trunk's matrices with AdamW for the rest.

    ``residual_*`` is about all parameters of the residual connection, ``query_*`` about the
    pseudo-queries among them.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1  # of the trunk's matrices only
    residual_lr_mult: float = 1.0
    query_weight_decay: float = 0.0  # the residual's other parameters have none
    query_optimizer: Literal["adamw", "muon"] = "adamw"  # muon: each query a matrix of one row
    query_master: bool = True  # false: rounded to bf16 after every step, as without an fp32 master
    clip: float = 1.0  # global gradient norm; 0: off
    residual_clip: float | None = None  # of the residual's gradients by themselves; 0: off
    freeze_trunk: bool = False  # only the residual's parameters are trained
    lora: LoraConfig = field(default_factory=LoraConfig)  # only adapters and the residual's are
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup: float = 0.05  # fraction of the steps
    decay: float = 0.2  # fraction of the steps; wsd only
    final_lr: float = 0.1  # fraction of lr at the last step

    def __post_init__(self) -> None:
        """Raises ValueError with the key and the remedy."""
        check_numbers(self, "optim.")
        if self.lr <= 0:
            raise ValueError(f"optim.lr: {self.lr} is not positive")
        for key in ("weight_decay", "residual_lr_mult", "query_weight_decay", "clip"):
            if getattr(self, key) < 0:
                raise ValueError(f"optim.{key}: {getattr(self, key)} is negative")
        if self.residual_clip is not None and self.residual_clip < 0:
            raise ValueError(
                f"optim.residual_clip: {self.residual_clip} is negative; leave it out to clip with "
                "the trunk"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas: {list(self.betas)} are not all in [0, 1)")
        for key in ("warmup", "decay", "final_lr"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(
                    f"optim.{key}: {getattr(self, key)} is not a fraction between 0 and 1"
                )
        if self.schedule == "wsd" and self.warmup + self.decay > 1 + 1e-9:
            raise ValueError(
                f"optim.decay: {self.decay} and optim.warmup = {self.warmup} are more than the "
                "whole of the steps; lower either"
            )
        if self.freeze_trunk and self.lora.rank is not None:
            raise ValueError(
                "optim.freeze_trunk: it would freeze the adapters, and optim.lora freezes the "
                "rest of the trunk; leave it out"
            )

    @property
    def freezes_trunk(self) -> bool:
        """Whether the trunk's own weights stay, with adapters beside them or without."""
        return self.freeze_trunk or self.lora.rank is not None

    def check(self, has_queries: bool, variant: str) -> None:
        """Raises ValueError for settings of pseudo-queries on a variant without any."""
        default = OptimConfig()
        for key in ("query_weight_decay", "query_optimizer", "query_master"):
            if not has_queries and getattr(self, key) != getattr(default, key):
                raise ValueError(
                    f"optim.{key}: {variant} has no pseudo-queries; leave it out, or take full, "
                    "block, rmsblock or delta with learned queries"
                )


def check_numbers(config: Any, prefix: str = "") -> None:
    """Raises ValueError for a number in ``config``, a dataclass, that is infinite, not a number, or
    larger than 64 bits: each comparison with NaN is false, so that a bound lets it pass.
    """
    for key, value in ((f"{prefix}{f.name}", getattr(config, f.name)) for f in fields(config)):
        if is_dataclass(value):
            check_numbers(value, f"{key}.")
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"{key}: {item} is not a finite number")
            if isinstance(item, int) and abs(item) >= 2**63:
                raise ValueError(f"{key}: {item} does not fit into 64 bits")
