"""The read as Triton kernels: any width, any number of sources, statistics in fp32.

Each source is loaded once forward, and twice backward, the second time from the cache. The kernels
are parametrised by ``Weighing``. A block is BLOCK_M tokens, and its items are their heads: rows of
E = UNITS * UNIT elements. Where the unit is 8, sources and gradients are loaded and stored 128 bits
at a time; tables point to multiples of 16 bytes.

The gradient of the query is summed in two stages, in the kernel and then over what it left, without
atomics: runs repeat bit for bit. Shapes: S sources, M tokens, D width, E width of a head.
"""

# The arguments of a kernel have no Python types:
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count"])
def addresses(table, values, count):
    for i in tl.static_range(len(values)):
        tl.store(table + i, values[i], mask=i < count)


@triton.jit
def _row_of(table, s, TYPE: tl.constexpr):
    return tl.multiple_of(tl.load(table + s).to(tl.pointer_type(TYPE)), 16)


@triton.jit
def _places(
    block,
    M,
    E,
    HEADS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Of a block's items, heads of tokens: elements of rows, whether they exist; weights, whether
    they exist.
    """
    item, cols = tl.arange(0, BLOCK_M * BLOCK_H), tl.arange(0, BLOCK_E)
    token = (block + tl.zeros((BLOCK_M * BLOCK_H,), tl.int64)) * BLOCK_M + item // BLOCK_H
    head = item % BLOCK_H
    mine = (token < M) & (head < HEADS)
    at = (token * HEADS + head)[:, None] * E + cols[None, :]
    return at, mine[:, None] & (cols[None, :] < E), head * M + token, mine


@triton.jit
def _queries(
    query,
    E,
    HEADS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Each item's part of the query; with one head all have the same."""
    cols = tl.arange(0, BLOCK_E)
    if HEADS == 1:
        q = tl.load(query + cols, mask=cols < E, other=0.0)[None, :]
    else:
        head = (tl.arange(0, BLOCK_M * BLOCK_H) % BLOCK_H)[:, None]
        inside = (head < HEADS) & (cols[None, :] < E)
        q = tl.load(query + head * E + cols[None, :], mask=inside, other=0.0)
    return q


@triton.jit
def _over_heads(x, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr):
    """The sum over a token's heads, for each of them."""
    if BLOCK_H > 1:
        total = tl.sum(tl.reshape(x, (BLOCK_M, BLOCK_H)), 1)
        total = tl.broadcast_to(total[:, None], (BLOCK_M, BLOCK_H))
        x = tl.reshape(total, (BLOCK_M * BLOCK_H,))
    return x


@triton.jit
def forward(
    table,
    query,
    h,
    alpha,
    lse,
    S,
    M,
    UNITS,
    eps,
    TYPE: tl.constexpr,
    MIXING: tl.constexpr,
    KEY_NORM: tl.constexpr,
    HEADS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Writes logits (softmax) or weights (sigmoid) to ``alpha``; static: reads one a source."""
    E = UNITS * UNIT
    at, inside, weights, mine = _places(tl.program_id(0), M, E, HEADS, BLOCK_M, BLOCK_H, BLOCK_E)
    if MIXING != "static":
        q = _queries(query, E, HEADS, BLOCK_M, BLOCK_H, BLOCK_E)
    top = tl.full((BLOCK_M * BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M * BLOCK_H,), tl.float32)
    mixed = tl.zeros((BLOCK_M * BLOCK_H, BLOCK_E), tl.float32)
    for s in range(S):
        source = _row_of(table, s, TYPE)
        v = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
        if MIXING == "static":
            mixed += tl.load(alpha + s) * v
        else:
            logit = tl.sum(v * q, 1)
            if KEY_NORM:
                square = _over_heads(tl.sum(v * v, 1), BLOCK_M, BLOCK_H)
                logit *= tl.rsqrt(square / (HEADS * E) + eps)
            if MIXING == "sigmoid":
                weight = tl.sigmoid(logit)
                tl.store(alpha + s * HEADS * M + weights, weight, mask=mine)
                mixed += weight[:, None] * v
            else:
                tl.store(alpha + s * HEADS * M + weights, logit, mask=mine)
                new_top = tl.maximum(top, logit)
                keep = tl.exp(top - new_top)
                weight = tl.exp(logit - new_top)
                total = total * keep + weight
                mixed = mixed * keep[:, None] + weight[:, None] * v
                top = new_top
    if MIXING == "softmax":
        mixed = mixed / total[:, None]
        tl.store(lse + weights, top + tl.log(total), mask=mine)
    tl.store(h + at, mixed.to(TYPE), mask=inside)


@triton.jit
def backward(
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
    MIXING: tl.constexpr,
    KEY_NORM: tl.constexpr,
    HEADS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Static: writes to ``d_query`` [S, M] what each token adds to the gradient of a weight."""
    E = UNITS * UNIT
    if MIXING != "static":
        q = _queries(query, E, HEADS, BLOCK_M, BLOCK_H, BLOCK_E)
    d_q = tl.zeros((BLOCK_M * BLOCK_H, BLOCK_E), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.num_programs(0)):
        at, inside, weights, mine = _places(block, M, E, HEADS, BLOCK_M, BLOCK_H, BLOCK_E)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        # grad . h, from the sources: h itself may have been rounded
        delta = tl.zeros((BLOCK_M * BLOCK_H,), tl.float32)
        if MIXING == "softmax":
            for s in range(S):
                source = _row_of(table, s, TYPE)
                v = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
                a = tl.load(alpha + s * HEADS * M + weights, mask=mine, other=0.0)
                delta += a * tl.sum(g * v, 1)
        for s in range(S):
            source, d_source = _row_of(table, s, TYPE), _row_of(d_table, s, TYPE)
            v = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
            dot = tl.sum(g * v, 1)
            if MIXING == "static":
                tl.store(d_query + s * M + weights, dot, mask=mine)
                d_v = tl.load(alpha + s) * g
            else:
                a = tl.load(alpha + s * HEADS * M + weights, mask=mine, other=0.0)
                d_logit = a * (dot - delta)
                if MIXING == "sigmoid":
                    d_logit *= 1 - a
                d_v = a[:, None] * g
                if KEY_NORM:
                    square = _over_heads(tl.sum(v * v, 1), BLOCK_M, BLOCK_H)
                    inverse_rms = tl.rsqrt(square / (HEADS * E) + eps)
                    d_logit *= inverse_rms
                    along_v = _over_heads(d_logit * tl.sum(v * q, 1), BLOCK_M, BLOCK_H)
                    along_v *= inverse_rms * inverse_rms / (HEADS * E)
                    d_v -= along_v[:, None] * v
                d_v += d_logit[:, None] * q
                d_q += d_logit[:, None] * v
            tl.store(d_source + at, d_v.to(TYPE), mask=inside)
    if MIXING != "static":
        # a row for each token of a block
        at, inside, _, _ = _places(
            tl.program_id(0), tl.num_programs(0) * BLOCK_M, E, HEADS, BLOCK_M, BLOCK_H, BLOCK_E
        )
        tl.store(d_query + at, d_q, mask=inside)
