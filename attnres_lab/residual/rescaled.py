"""A control: the baseline with the growth of its hidden state taken out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer


@dataclass(frozen=True)
class RescaledConfig(ResidualConfig):
    """No options."""

    name: str = "rescaled"


class Rescaled(Residual):
    """h_{l+1} = (sqrt(l) h_l + f_l(h_l)) / sqrt(l + 1), l from 1: h_l is the baseline's divided by
    sqrt(l).

    PreNorm ignores the scale, so it stays the baseline in function and in every weight's gradient,
    through training too; only what the norm's eps sees and the gradients of h differ. It separates
    what bounded magnitudes bring from what selection brings. Ours, from no paper.
    """

    Config = RescaledConfig

    def start(self, x_BTD: Tensor) -> Tensor:
        return x_BTD

    def step(self, state: Tensor, sublayer: Sublayer, index: int) -> Tensor:
        count = index + 1
        return (state * math.sqrt(count) + sublayer(state)) / math.sqrt(count + 1)

    def finish(self, state: Tensor) -> Tensor:
        return state
