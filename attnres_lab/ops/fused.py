"""The read as Triton kernels: any width, any number of sources, statistics in fp32.

Each source is loaded once forward, and twice backward, the second time from the cache. The
kernels find the sources by a table of addresses that a kernel of its own writes from its
arguments: one compiled kernel serves any number of sources, and nothing is copied from the host,
so that a read can be captured in a CUDA graph. Tables point to multiples of 16 bytes, and the
width is ``UNITS * UNIT``: where the unit is 8, sources and gradients are loaded and stored 128
bits at a time.

The gradient of the query is summed in two stages, per program and then over programs, without
atomics: runs repeat bit for bit. Shapes: S sources, M tokens, D width.
"""

# The arguments of a kernel have no Python types:
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: ANN001, ANN202, PLR0913

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnres_lab.ops.reads import PAPER, Weighing

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
#: Addresses that one launch writes.
CHUNK = 32


@triton.jit(do_not_specialize=["count"])
def _addresses(table, addresses, count):
    for i in tl.static_range(len(addresses)):
        tl.store(table + i, addresses[i], mask=i < count)


@triton.jit
def _row_of(table, s, TYPE: tl.constexpr):
    return tl.multiple_of(tl.load(table + s).to(tl.pointer_type(TYPE)), 16)


@triton.jit
def _forward(
    table,
    query,
    h,
    logits,
    lse,
    S,
    M,
    UNITS,
    eps,
    TYPE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    D = UNITS * UNIT
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_D)
    at = rows[:, None] * D + cols[None, :]
    inside = (rows[:, None] < M) & (cols[None, :] < D)
    q = tl.load(query + cols, mask=cols < D, other=0.0)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for s in range(S):
        source = _row_of(table, s, TYPE)
        v = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
        logit = tl.sum(v * q[None, :], 1) * tl.rsqrt(tl.sum(v * v, 1) / D + eps)
        tl.store(logits + s * M + rows, logit, mask=rows < M)
        new_top = tl.maximum(top, logit)
        keep = tl.exp(top - new_top)
        weight = tl.exp(logit - new_top)
        total = total * keep + weight
        mixed = mixed * keep[:, None] + weight[:, None] * v
        top = new_top
    tl.store(h + at, (mixed / total[:, None]).to(TYPE), mask=inside)
    tl.store(lse + rows, top + tl.log(total), mask=rows < M)


@triton.jit
def _backward(
    table,
    d_table,
    grad,
    query,
    alpha,
    d_query,
    S,
    M,
    UNITS,
    eps,
    TYPE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    D = UNITS * UNIT
    cols = tl.arange(0, BLOCK_D)
    q = tl.load(query + cols, mask=cols < D, other=0.0)
    d_q = tl.zeros((BLOCK_D,), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.num_programs(0)):
        rows = (block + tl.zeros((BLOCK_M,), tl.int64)) * BLOCK_M + tl.arange(0, BLOCK_M)
        at = rows[:, None] * D + cols[None, :]
        inside = (rows[:, None] < M) & (cols[None, :] < D)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        # grad . h, from the sources: h itself may have been rounded
        delta = tl.zeros((BLOCK_M,), tl.float32)
        for s in range(S):
            source = _row_of(table, s, TYPE)
            v = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
            delta += tl.load(alpha + s * M + rows, mask=rows < M, other=0.0) * tl.sum(g * v, 1)
        for s in range(S):
            source = _row_of(table, s, TYPE)
            v = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
            a = tl.load(alpha + s * M + rows, mask=rows < M, other=0.0)
            inverse_rms = tl.rsqrt(tl.sum(v * v, 1) / D + eps)
            d_logit = a * (tl.sum(g * v, 1) - delta)
            along_q = d_logit * inverse_rms
            along_v = along_q * inverse_rms * inverse_rms * tl.sum(v * q[None, :], 1) / D
            d_v = a[:, None] * g + along_q[:, None] * q[None, :] - along_v[:, None] * v
            d_source = _row_of(d_table, s, TYPE)
            tl.store(d_source + at, d_v.to(TYPE), mask=inside)
            d_q += tl.sum(along_q[:, None] * v, 0)
    tl.store(d_query + tl.program_id(0).to(tl.int64) * D + cols, d_q, mask=cols < D)


def serves(sources: Sequence[Tensor], how: Weighing = PAPER) -> bool:
    """Whether the kernels know dtype and weighing; the width must leave a row in registers."""
    return sources[0].dtype in TYPES and sources[0].shape[-1] <= 16384 and how == PAPER


def depth_read(
    sources: Sequence[Tensor], query: Tensor, eps: float, how: Weighing = PAPER
) -> tuple[Tensor, Tensor]:
    """As ``lean.read``."""
    sources = [_aligned(v) for v in sources]
    first, S, (M, D) = sources[0], len(sources), sources[0].shape
    h, lse = torch.empty_like(first), first.new_empty(M, dtype=torch.float32)
    alpha = first.new_empty(S, 1, M, dtype=torch.float32)
    sizes = _sizes(first)
    grid = (triton.cdiv(M, sizes["BLOCK_M"]),)
    _forward[grid](
        _table(sources),
        query.float(),
        h,
        alpha,
        lse,
        S,
        M,
        D // sizes["UNIT"],
        eps,
        TYPE=TYPES[first.dtype],
        **sizes,
    )
    return h, alpha.sub_(lse).exp_()


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
    d_sources, sizes = [torch.empty_like(v) for v in sources], _sizes(first)
    programs = (
        4 * torch.cuda.get_device_properties(first.device).multi_processor_count
        if first.is_cuda
        else 3
    )
    programs = min(triton.cdiv(M, sizes["BLOCK_M"]), programs)
    d_query = first.new_empty(programs, D, dtype=torch.float32)
    tables = _table(sources), _table(d_sources)
    _backward[(programs,)](
        *tables,
        _aligned(grad),
        query.float(),
        alpha,
        d_query,
        S,
        M,
        D // sizes["UNIT"],
        eps,
        TYPE=TYPES[first.dtype],
        **sizes,
    )
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
        _addresses[(1,)](table[start:], (*addresses, *addresses[:1] * (CHUNK - count)), count)
    return table


def _sizes(first: Tensor) -> dict[str, int]:
    """Eight elements a thread at least (128 bits in bf16), 16 at most in the widths in use."""
    dim = first.shape[1]
    block_d = triton.next_power_of_2(dim)
    return {
        "UNIT": math.gcd(dim, 8),
        "BLOCK_D": block_d,
        "BLOCK_M": max(1, 1024 // block_d),
        "num_warps": min(16, max(4, block_d // 512)),
    }
