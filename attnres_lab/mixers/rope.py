"""Rotary positions (RoPE, arXiv 2104.09864), on a part of the head, stretched for long contexts.

Shapes: B batch, H heads, T time, E head width, R the part of it that is rotated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeConfig:
    """``scaling`` slows the rotations down by ``factor`` where a pair turns fewer than ``slow``
    times in ``original_length`` positions, not at all above ``fast`` turns, and in part between.

    llama3: linear in the number of turns (Llama 3.1); yarn: linear in the index of the pair, and
    cosines and sines are multiplied by 0.1 ln(factor) + 1 (arXiv 2309.00071, section 3.4).
    """

    fraction: float = 1.0  # of the head width, from the front; 0: no positions (NoPE)
    scaling: Literal["none", "llama3", "yarn"] = "none"
    factor: float = 8.0
    original_length: int = 8192
    slow: float = 1.0
    fast: float | None = None  # None: 4 (llama3), 32 (yarn)

    def width(self, head_dim: int) -> int:
        """Rotated channels of a head."""
        return round(head_dim * self.fraction)

    def check(self, head_dim: int, key: str) -> None:
        """Raises ValueError with the key, below that of this section, and the remedy."""
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"{key}.fraction: {self.fraction} is not between 0 and 1")
        if self.width(head_dim) % 2:
            raise ValueError(
                f"model.num_heads: RoPE needs an even width, it turns {self.width(head_dim)} "
                f"channels of a head of {head_dim}; change the heads or {key}.fraction"
            )
        if self.factor < 1:
            raise ValueError(f"{key}.factor: {self.factor} is below 1, which would not stretch")
        if self.original_length < 1:
            raise ValueError(f"{key}.original_length: {self.original_length} is not positive")
        if self.scaling != "none" and not 0 < self.slow < self.turns:
            raise ValueError(f"{key}.slow: {self.slow} is not between 0 and fast = {self.turns}")

    @property
    def turns(self) -> float:
        """``fast``, or its default."""
        return self.fast or (32.0 if self.scaling == "yarn" else 4.0)

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return 0.1 * math.log(self.factor) + 1 if self.scaling == "yarn" else 1.0


def frequencies(c: RopeConfig, width: int, theta: float, device: torch.device) -> Tensor:
    """Radians per position, [R/2]."""
    plain = theta ** -(torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    if c.scaling == "none":
        return plain
    if c.scaling == "llama3":
        turns = c.original_length * plain / (2 * math.pi)
        kept = ((turns - c.slow) / (c.turns - c.slow)).clamp(0, 1)
    else:  # the pair that turns r times has index R ln(length / (2 pi r)) / (2 ln theta)
        first, last = (
            width * math.log(c.original_length / (2 * math.pi * r)) / (2 * math.log(theta))
            for r in (c.turns, c.slow)
        )
        low, high = max(math.floor(first), 0), min(math.ceil(last), width - 1)
        index = torch.arange(width // 2, device=device, dtype=torch.float32)
        kept = 1 - ((index - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain * (kept + (1 - kept) / c.factor)


def rope_angles(
    c: RopeConfig, width: int, theta: float, positions: range, device: torch.device
) -> Tensor:
    """Angles [T, R/2] of the positions."""
    time = torch.arange(positions.start, positions.stop, device=device, dtype=torch.float32)
    return torch.outer(time, frequencies(c, width, theta, device))


def rotate(x_BHTE: Tensor, angles_TR: Tensor, amplitude: float = 1.0) -> Tensor:
    """Rotate the pairs (i, i + R/2) of the first R channels of every head by the position's
    angles; the other channels pass.
    """
    width = 2 * angles_TR.shape[-1]
    cos, sin = angles_TR.cos().to(x_BHTE.dtype), angles_TR.sin().to(x_BHTE.dtype)
    if amplitude != 1:
        cos, sin = cos * amplitude, sin * amplitude
    a, b = x_BHTE[..., :width].chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, x_BHTE[..., width:]], -1)
