"""KDA in chunks of C = 8 positions, as matrix products: the fast form on CPUs.

With G the running sum of the log decays inside a chunk and S the memory before it, the corrections
u of its positions solve a triangular system:

    u_t + beta_t sum_{s<t} <k_t, exp(G_t - G_s) k_s> u_s = beta_t (v_t - S^T exp(G_t) k_t)
    o_t = S^T exp(G_t) q_t + sum_{s<=t} <q_t, exp(G_t - G_s) k_s> u_s

Each exp(G_t - G_s) is the product of exp(G_t - G_mid) and exp(G_mid - G_s), one factor for either
side of a matrix product. So that neither overflows, log decays per position are cut where their
exponential is nothing to the precision. Shapes as in kda.py; N chunks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 8
#: Least log decay per position: half a chunk of it must not overflow.
FLOOR = {torch.float32: -20.0, torch.float64: -170.0}


def kda(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    decay_BHTK: Tensor,
    beta_BHT: Tensor,
    state_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As ``ops.kda.recurrent``; in fp32 or fp64."""
    T = q_BHTK.shape[2]
    q, k, v, g, beta = (
        _chunks(x) for x in (q_BHTK, k_BHTK, v_BHTV, decay_BHTK, beta_BHT[..., None])
    )
    sums = g.clamp(min=FLOOR[g.dtype]).cumsum(-2)
    # the result does not depend on the middle, so neither may a gradient, not even by rounding
    middle, last = sums[..., CHUNK // 2 - 1 : CHUNK // 2, :].detach(), sums[..., -1:, :]
    rising, falling, total = (sums - middle).exp(), k * (middle - sums).exp(), sums.exp()
    # above the diagonal the products may overflow: they are cut, not multiplied by zero
    system = beta * ((k * rising) @ falling.mT).tril(-1)
    solved = torch.linalg.solve_triangular(
        system, beta * torch.cat([v, k * total], -1), upper=False, unitriangular=True
    )
    values, reads = solved.split([v.shape[-1], k.shape[-1]], -1)
    keys, forget = (k * (last - sums).exp()).mT, last.exp().mT
    memory = v.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    if state_BHKV is not None:
        memory = state_BHKV
    memories, corrections = [], []
    # unbound at once: a gradient of each chunk by itself would be as large as all of them
    for value, read, key, kept in zip(
        values.unbind(2), reads.unbind(2), keys.unbind(2), forget.unbind(2), strict=True
    ):
        memories.append(memory)
        corrections.append(value - read @ memory)
        memory = memory * kept + key @ corrections[-1]
    within = ((q * rising) @ falling.mT).tril() @ torch.stack(corrections, 2)
    out = (q * total) @ torch.stack(memories, 2) + within
    return out.flatten(2, 3)[:, :, :T], memory


def _chunks(x: Tensor) -> Tensor:
    """[B, H, T, X] to [B, H, N, C, X], filled up with zeros: no decay, no correction."""
    B, H, T, X = x.shape
    return F.pad(x, (0, 0, 0, -T % CHUNK)).view(B, H, -1, CHUNK, X)


def flops_per_token(key_dim: int, value_dim: int) -> int:
    """Forward FLOPs of one head's matrix products per token, for whole chunks."""
    return 4 * CHUNK * key_dim + 2 * CHUNK * value_dim + 6 * key_dim * value_dim
