"""Depth attention as the paper defines it (arXiv 2603.15031, section 3); every faster twin is
tested against this file.

Shapes: S sources, D model width, ``...`` any leading dimensions (batch, time).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def depth_weights(
    sources: Sequence[Tensor], pseudo_query: Tensor, key_gain: Tensor, eps: float
) -> Tensor:
    """Softmax over the sources of ``pseudo_query . RMSNorm(source)``, in fp32 at least: [S, ...].
    No 1/sqrt(D), no temperature.
    """
    with torch.autocast(sources[0].device.type, enabled=False):
        return _weights(_stack(sources), pseudo_query, key_gain, eps)


def _weights(v_SxD: Tensor, pseudo_query: Tensor, key_gain: Tensor, eps: float) -> Tensor:
    rms_Sx1 = v_SxD.square().mean(-1, keepdim=True).add(eps).rsqrt()
    query_D = pseudo_query.to(v_SxD.dtype) * key_gain.to(v_SxD.dtype)
    logits_Sx = torch.einsum("s...d,d->s...", v_SxD * rms_Sx1, query_D)
    return logits_Sx.softmax(0)


def depth_attention(
    sources: Sequence[Tensor], pseudo_query: Tensor, key_gain: Tensor, eps: float
) -> Tensor:
    """One read: the depth-weighted sum of the raw (not normalised) sources, [..., D] in the
    sources' dtype.
    """
    with torch.autocast(sources[0].device.type, enabled=False):
        v_SxD = _stack(sources)
        alpha_Sx = _weights(v_SxD, pseudo_query, key_gain, eps)
        return torch.einsum("s...,s...d->...d", alpha_Sx, v_SxD).to(sources[0].dtype)


def _stack(sources: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(tuple(sources))
    return stacked if stacked.dtype == torch.float64 else stacked.float()
