"""KDA by the fused GPU kernels of flash-linear-attention (package ``fla-core``), where it is
installed. Shapes as in kda.py.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


@cache
def installed() -> bool:
    """Whether the package is there."""
    return find_spec("fla") is not None


def serves(q_BHTK: Tensor) -> bool:
    """On CUDA, in fp32 or less."""
    return q_BHTK.is_cuda and q_BHTK.dtype != torch.float64 and installed()


def kda(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    decay_BHTK: Tensor,
    beta_BHT: Tensor,
    state_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As ``ops.kda.recurrent``. Not measured."""
    from fla.ops.kda import chunk_kda

    q, k, v, g, beta = (
        x.transpose(1, 2).contiguous() for x in (q_BHTK, k_BHTK, v_BHTV, decay_BHTK, beta_BHT)
    )
    out, state = chunk_kda(
        q, k, v, g, beta, scale=1.0, initial_state=state_BHKV, output_final_state=True
    )
    return out.transpose(1, 2), state
