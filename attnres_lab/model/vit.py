"""The Vision Transformer (arXiv 2010.11929) on the same sublayers and residual connections: square
patches, learned positions, the mean over the patches.

Shapes: B batch, C channels, S size of an image, P patches of an image, D width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnres_lab.mixers.base import draw
from attnres_lab.model.init import init_weights
from attnres_lab.model.transformer import ModelConfig, Network


@dataclass(frozen=True)
class ImageShape:
    """Images and what is told apart in them; the defaults are those of MNIST and its like."""

    size: int = 28  # rows and columns
    channels: int = 1
    classes: int = 10
    patch: int = 7  # rows and columns of a patch
    positions: bool = True  # false: a bag of patches

    def __post_init__(self) -> None:
        """Raises ValueError with the key and the remedy."""
        for key in ("size", "channels", "classes", "patch"):
            if getattr(self, key) < 1:
                raise ValueError(f"task.image.{key}: {getattr(self, key)} is not positive")
        if self.size % self.patch:
            raise ValueError(
                f"task.image.patch: {self.patch} does not divide task.image.size = {self.size}; "
                "change either"
            )

    @property
    def patches(self) -> int:
        """Of an image."""
        return (self.size // self.patch) ** 2

    @property
    def patch_values(self) -> int:
        """Numbers in a patch."""
        return self.channels * self.patch**2


class ViT(Network):
    """Images [B, C, S, S] of bytes (0 to 255) to logits [B, K]."""

    embed: nn.Linear

    def __init__(self, config: ModelConfig, image: ImageShape, seed: int = 0) -> None:
        embed = nn.Linear(image.patch_values, config.dim, bias=False)
        super().__init__(config, embed, nn.Linear(config.dim, image.classes, bias=False))
        self.image = image
        self.positions = (
            nn.Parameter(torch.empty(image.patches, config.dim)) if image.positions else None
        )
        init_weights(self, seed)

    def draw_embedding(self, generator: torch.Generator) -> None:
        draw(self.embed.weight, self.embed.in_features, generator)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=0.02, generator=generator)

    def forward(self, images_BCSS: Tensor) -> Tensor:
        x_BPD = self.embed(self.patches(images_BCSS))
        if self.positions is not None:
            x_BPD = x_BPD + self.positions
        logits: Tensor = self.head(self.through(x_BPD).mean(1))
        return logits

    def patches(self, images_BCSS: Tensor) -> Tensor:
        """Patches [B, P, C * patch^2] row by row, scaled to -1 .. 1."""
        x = images_BCSS.to(self.head.weight.dtype) / 127.5 - 1
        side = self.image.patch
        x = x.unfold(2, side, side).unfold(3, side, side)  # [B, C, rows, columns, side, side]
        return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
