"""The optimiser section of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, or Muon for the trunk's matrices with AdamW for the rest."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1  # of the trunk's matrices only
    residual_lr_mult: float = 1.0  # the residual's parameters: no weight decay, no Muon
    clip: float = 1.0  # global gradient norm; 0: off
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup: float = 0.05  # fraction of the steps
    decay: float = 0.2  # fraction of the steps; wsd only
    final_lr: float = 0.1  # fraction of lr at the last step

    def __post_init__(self) -> None:
        """Raises ValueError with the key and the remedy."""
        if self.lr <= 0:
            raise ValueError(f"optim.lr: {self.lr} is not positive")
        for key in ("weight_decay", "residual_lr_mult", "clip"):
            if getattr(self, key) < 0:
                raise ValueError(f"optim.{key}: {getattr(self, key)} is negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas: {list(self.betas)} are not all in [0, 1)")
        for key in ("warmup", "decay", "final_lr"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(
                    f"optim.{key}: {getattr(self, key)} is not a fraction between 0 and 1"
                )
