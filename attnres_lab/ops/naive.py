"""Depth attention as the paper defines it (arXiv 2603.15031, section 3), with the options of its
ablations; every faster twin is tested against this file.

Shapes: S sources, D model width, H heads, ``...`` any leading dimensions (batch, time).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnres_lab.ops.reads import PAPER, Weighing


def depth_weights(
    sources: Sequence[Tensor],
    pseudo_query: Tensor,
    key_gain: Tensor | None,
    eps: float,
    weighing: Weighing = PAPER,
) -> Tensor:
    """Softmax over the sources of ``pseudo_query . RMSNorm(source)``, in fp32 at least: [S, ...],
    the mean over heads. No 1/sqrt(D).
    """
    with torch.autocast(sources[0].device.type, enabled=False):
        return _weights(_stack(sources), pseudo_query, key_gain, eps, weighing).mean(-1)


def _weights(
    v_SxD: Tensor, pseudo_query: Tensor, key_gain: Tensor | None, eps: float, weighing: Weighing
) -> Tensor:
    """By head, [S, ..., H]."""
    gain = None if key_gain is None else key_gain.to(v_SxD.dtype)
    query = weighing.query(pseudo_query.to(v_SxD.dtype), gain)
    if weighing.mixing == "static":
        logits_SxH = query.view(-1, *[1] * (v_SxD.ndim - 1)).expand(*v_SxD.shape[:-1], 1)
    else:
        k_SxD = v_SxD
        if weighing.key_norm:
            k_SxD = v_SxD * v_SxD.square().mean(-1, keepdim=True).add(eps).rsqrt()
        k_SxHE, q_xHE = (_by_head(x, weighing) for x in (k_SxD, query))
        logits_SxH = torch.einsum("s...he,...he->s...h", k_SxHE, q_xHE)
    return weighing.weights(logits_SxH)


def depth_attention(
    sources: Sequence[Tensor],
    pseudo_query: Tensor,
    key_gain: Tensor | None,
    eps: float,
    weighing: Weighing = PAPER,
) -> Tensor:
    """One read: the depth-weighted sum of the raw (not normalised) sources, [..., D] in the
    sources' dtype.
    """
    with torch.autocast(sources[0].device.type, enabled=False):
        v_SxD = _stack(sources)
        alpha_SxH = _weights(v_SxD, pseudo_query, key_gain, eps, weighing)
        h_xHE = torch.einsum("s...h,s...he->...he", alpha_SxH, _by_head(v_SxD, weighing))
        return h_xHE.flatten(-2).to(sources[0].dtype)


def _by_head(x_D: Tensor, weighing: Weighing) -> Tensor:
    return x_D.reshape(*x_D.shape[:-1], weighing.heads, -1)


def _stack(sources: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(tuple(sources))
    return stacked if stacked.dtype == torch.float64 else stacked.float()
