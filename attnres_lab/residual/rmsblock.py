"""RMS Block (the repository rms-block-attnres): Block AttnRes whose finished blocks are sums of
normalised outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from attnres_lab.residual.attnres import Block, BlockConfig, Sources
from attnres_lab.residual.base import Sublayer, exact

EPS = 1e-6  # of the norm on outputs


@dataclass(frozen=True)
class RMSBlockConfig(BlockConfig):
    """The options of ``block``."""

    name: str = "rmsblock"

    @property
    def label(self) -> str:
        return f"rms{super().label}"


class RMSState(NamedTuple):
    """The sources as in Block AttnRes, and the sum of the normalised outputs of the open block."""

    sources: Sources
    normed: Tensor | None


class RMSBlock(Block):
    """A finished block is the source sum_i RMSNorm(y_i) over its sublayers' outputs y_i, the norm
    without a gain; embedding and open partial sum stay raw.
    """

    Config = RMSBlockConfig

    def __init__(
        self, config: RMSBlockConfig, num_sublayers: int, dim: int, norm_eps: float
    ) -> None:
        super().__init__(config, num_sublayers, dim, norm_eps)
        # outputs of unequal length get equal weight in a finished block
        self.starts_as_baseline = False

    def start(self, x_BTD: Tensor) -> Any:
        """No other schedule: they add up raw outputs."""
        return RMSState(Sources((x_BTD,), None, self.per_read()), None)

    def step(self, state: Any, sublayer: Sublayer, index: int) -> Any:
        sources, normed = RMSState(*state)
        out_BTD = self._run(sources, sublayer, index)
        with exact(out_BTD):
            unit_BTD = F.rms_norm(out_BTD, out_BTD.shape[-1:], eps=EPS)
        normed = unit_BTD if normed is None else normed + unit_BTD
        if index + 1 in self.ends:
            return RMSState(sources._replace(done=(*sources.done, normed), partial=None), None)
        open_sum = out_BTD if sources.partial is None else sources.partial + out_BTD
        return RMSState(sources._replace(partial=open_sum), normed)

    def carry(self, state: Any, index: int) -> dict[str, Tensor]:
        sources, normed = RMSState(*state)
        named = super().carry(sources, index)
        return named if normed is None else named | {f"normed@{index}": normed}

    def resume(self, tensors: Mapping[str, Tensor], index: int) -> Any:
        return RMSState(super().resume(tensors, index), tensors.get(f"normed@{index}"))

    def finish(self, state: Any) -> Tensor:
        return super().finish(RMSState(*state).sources)
