"""The read in Triton (``kernels.py``), with every option of ``Weighing``.

The kernels find the sources by a table of addresses that a kernel of its own writes from its
arguments: one compiled kernel serves any number of sources, and nothing is copied from the host,
so that a read can be captured in a CUDA graph. Shapes: S sources, M tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnres_lab.ops import kernels
from attnres_lab.ops.reads import PAPER, Weighing

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
#: Addresses that one launch writes.
CHUNK = 32


def serves(sources: Sequence[Tensor], how: Weighing = PAPER) -> bool:
    """Whether the kernels know the dtype, and a row fits into registers."""
    first = sources[0]
    return first.dtype in TYPES and _row(_sizes(first.shape[-1], how)) <= 16384


def depth_read(
    sources: Sequence[Tensor], query: Tensor, eps: float, how: Weighing = PAPER
) -> tuple[Tensor, Tensor]:
    """As ``lean.read``."""
    sources = [_aligned(v) for v in sources]
    first, S, (M, D) = sources[0], len(sources), sources[0].shape
    sizes = _sizes(D, how)
    h, query = torch.empty_like(first), query.float()
    lse = first.new_empty(sizes["HEADS"], M, dtype=torch.float32)
    if how.mixing == "static":
        alpha = how.weights(query[:, None, None])
    else:
        alpha = first.new_empty(S, *lse.shape, dtype=torch.float32)
    kernels.forward[(triton.cdiv(M, sizes["BLOCK_M"]),)](
        _table(sources),
        query,
        h,
        alpha,
        lse,
        S,
        M,
        D // sizes["HEADS"] // sizes["UNIT"],
        eps,
        TYPE=TYPES[first.dtype],
        MIXING=how.mixing,
        KEY_NORM=how.key_norm,
        **sizes,
    )
    return h, alpha.sub_(lse).exp_() if how.mixing == "softmax" else alpha


def depth_read_backward(
    grad: Tensor,
    sources: Sequence[Tensor],
    query: Tensor,
    alpha: Tensor,
    eps: float,
    how: Weighing = PAPER,
) -> tuple[list[Tensor], Tensor]:
    """As ``lean.read_backward``."""
    sources = [_aligned(v) for v in sources]
    first, S, (M, D) = sources[0], len(sources), sources[0].shape
    d_sources, sizes = [torch.empty_like(v) for v in sources], _sizes(D, how)
    programs = (
        4 * torch.cuda.get_device_properties(first.device).multi_processor_count
        if first.is_cuda
        else 3
    )
    programs = min(triton.cdiv(M, sizes["BLOCK_M"]), programs)
    static = how.mixing == "static"
    partial = (S, M) if static else (programs * sizes["BLOCK_M"], D)
    d_query = first.new_empty(partial, dtype=torch.float32)
    tables = _table(sources), _table(d_sources)
    kernels.backward[(programs,)](
        *tables,
        _aligned(grad),
        query.float(),
        alpha,
        d_query,
        S,
        M,
        D // sizes["HEADS"] // sizes["UNIT"],
        eps,
        TYPE=TYPES[first.dtype],
        MIXING=how.mixing,
        KEY_NORM=how.key_norm,
        **sizes,
    )
    if static:
        weights, dots = alpha.flatten(), d_query.sum(1)
        return d_sources, (weights * (dots - (weights * dots).sum())).to(query.dtype)
    return d_sources, d_query.sum(0).to(query.dtype)


def _aligned(x: Tensor) -> Tensor:
    """In rows without gaps, from a multiple of 16 bytes on, as allocators give it."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _table(tensors: Sequence[Tensor]) -> Tensor:
    """Addresses on the device, written there: a copy from the host could not be captured."""
    table = tensors[0].new_empty(len(tensors), dtype=torch.int64)
    for start in range(0, len(tensors), CHUNK):
        addresses = [x.data_ptr() for x in tensors[start : start + CHUNK]]
        count = len(addresses)
        kernels.addresses[(1,)](
            table[start:], (*addresses, *addresses[:1] * (CHUNK - count)), count
        )
    return table


def _sizes(dim: int, how: Weighing) -> dict[str, int]:
    """Eight elements a thread at least (128 bits in bf16), 16 at most in the widths in use."""
    heads = 1 if how.mixing == "static" else how.heads
    blocks = {
        "BLOCK_H": triton.next_power_of_2(heads),
        "BLOCK_E": triton.next_power_of_2(dim // heads),
    }
    row = _row(blocks)
    return {
        "HEADS": heads,
        "UNIT": math.gcd(dim // heads, 8),
        "BLOCK_M": max(1, 1024 // row),
        **blocks,
        "num_warps": min(16, max(4, row // 512)),
    }


def _row(sizes: dict[str, int]) -> int:
    """Elements of a token with what fills up its heads."""
    return sizes["BLOCK_H"] * sizes["BLOCK_E"]
