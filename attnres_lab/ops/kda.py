"""Kimi Delta Attention (KDA, arXiv 2510.26692): a linear attention whose memory S [K, V] forgets by
key channel and is corrected by the delta rule.

    S <- diag(exp(g)) S;   S <- S + beta k (v - S^T k)^T;   o = S^T q

Shapes: B batch, H heads, T time, K key width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnres_lab.ops import kda_chunked, kda_fla


def kda(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    decay_BHTK: Tensor,
    beta_BHT: Tensor,
    state_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs [B, H, T, V] and the memory [B, H, K, V] after the last position, starting from
    ``state`` or from zeros, in the fastest form at hand. ``decay`` is log decay, at most 0.
    """
    inputs = q_BHTK, k_BHTK, v_BHTV, decay_BHTK, beta_BHT, state_BHKV
    if q_BHTK.shape[2] == 1:
        return recurrent(*inputs)
    if kda_fla.serves(q_BHTK):
        return kda_fla.kda(*inputs)
    return kda_chunked.kda(*inputs)


def recurrent(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    decay_BHTK: Tensor,
    beta_BHT: Tensor,
    state_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, one position after the other."""
    B, H, T, K = q_BHTK.shape
    memory = v_BHTV.new_zeros(B, H, K, v_BHTV.shape[3]) if state_BHKV is None else state_BHKV
    out = []
    for t in range(T):
        k_BHK1 = k_BHTK[:, :, t, :, None]
        memory = memory * decay_BHTK[:, :, t, :, None].exp()
        error_BHV = v_BHTV[:, :, t] - (memory * k_BHK1).sum(2)
        memory = memory + k_BHK1 * (beta_BHT[:, :, t, None] * error_BHV)[:, :, None]
        out.append((memory * q_BHTK[:, :, t, :, None]).sum(2))
    return torch.stack(out, 2), memory
