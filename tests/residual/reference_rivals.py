"""The methods that the field compares, written a second time from their sources: no code is shared
with the package.

Sublayers are functions of [..., D] with their PreNorm inside; everything is spelled out stream by
stream, part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Sublayer = Callable[[Tensor], Tensor]
Read = Callable[[Sequence[Tensor]], Tensor]


def unit_rms(x: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def rms_block(
    x: Tensor, sublayers: Sequence[Sublayer], reads: Sequence[Read], sizes: Sequence[int]
) -> Tensor:
    """Block AttnRes where a block, once finished, is the sum of its normalised outputs."""
    finished, number = [x], 0
    for size in sizes:
        outputs: list[Tensor] = []
        for _ in range(size):
            raw = [sum(outputs[1:], outputs[0])] if outputs else []
            h = x if number == 0 else reads[number - 1]([*finished, *raw])
            outputs.append(sublayers[number](h))
            number += 1
        finished.append(sum(unit_rms(y, 1e-6) for y in outputs))
    return reads[-1](finished)


def frac(x: Tensor, sublayers: Sequence[Sublayer], sites: Sequence[dict]) -> Tensor:
    """2503.14125: M contiguous parts. ``read`` and ``mix`` are [target][source], ``write`` a factor
    per part; ``moves`` (or None) maps a source part to its changes: of read and mix to each target,
    of write.
    """
    m = len(sites[0]["write"])
    parts = list(x.split(x.shape[-1] // m, -1))
    for f, site in zip(sublayers, sites, strict=True):
        read = [[site["read"][i][j] for j in range(m)] for i in range(m)]
        mix = [[site["mix"][i][j] for j in range(m)] for i in range(m)]
        write = [site["write"][j] for j in range(m)]
        if site["moves"] is not None:
            for j in range(m):
                change = site["moves"](parts[j])
                for i in range(m):
                    read[i][j] = (read[i][j] + site["scale"][0] * change[..., i])[..., None]
                    mix[i][j] = (mix[i][j] + site["scale"][0] * change[..., m + i])[..., None]
                write[j] = (write[j] + site["scale"][1] * change[..., 2 * m])[..., None]
        h = torch.cat([sum(read[i][j] * parts[j] for j in range(m)) for i in range(m)], -1)
        out = f(h).split(x.shape[-1] // m, -1)
        parts = [sum(mix[i][j] * parts[j] for j in range(m)) + write[i] * out[i] for i in range(m)]
    return torch.cat(parts, -1)


def delta_block(
    x: Tensor,
    sublayers: Sequence[Sublayer],
    reads: Sequence[Read],
    size: int,
    gates: Sequence[Tensor] | None,
    null: bool,
) -> Tensor:
    """2605.18855: the stream plus a read of the embedding, the finished blocks and the open one."""
    outputs: list[Tensor] = []
    for number, f in enumerate(sublayers):
        stream = sum(outputs, x)
        if number == 0:
            outputs.append(f(stream))
            continue
        blocks = [sum(outputs[at : at + size]) for at in range(0, number, size)]
        selected = reads[number - 1]([x, *blocks, *([x * 0] if null else [])])
        gate = 1 if gates is None else gates[number - 1]
        outputs.append(f(stream + gate * selected))
    return sum(outputs, x)


def ddl(x: Tensor, sublayers: Sequence[Sublayer], weights: Sequence[tuple], eps: float) -> Tensor:
    """2601.00417 with d_v = 1. ``weights``: of beta and its bias, of v and its bias."""
    for f, (w_b, c_b, w_v, c_v) in zip(sublayers, weights, strict=True):
        k = f(x)
        k = k / torch.sqrt((k * k).sum(-1, keepdim=True) + 1e-10)
        beta = 2 / (1 + torch.exp(-((w_b * unit_rms(x, eps)).sum(-1, keepdim=True) + c_b)))
        v = 4 / (1 + torch.exp(-((w_v * x).sum(-1, keepdim=True) + c_v)))
        erase = torch.einsum("...i,...j,...j->...i", k, k, x)
        x = x - beta * erase + beta * v * k
    return x


def x0(x: Tensor, sublayers: Sequence[Sublayer], lambdas: Sequence[tuple]) -> Tensor:
    """nanochat: the stream scaled and the embedding added, before every layer of two sublayers."""
    h = x
    for layer, (l1, l2) in enumerate(lambdas):
        h = l1 * h + l2 * x
        h = h + sublayers[2 * layer](h)
        h = h + sublayers[2 * layer + 1](h)
    return h


def gated(x: Tensor, sublayers: Sequence[Sublayer], sites: Sequence, eps: float) -> Tensor:
    """qwen4_exp: a low-rank, channel-wise sigmoid gate on every normalised stream, and their mean;
    the output is written to each stream with a weight of its own.
    """
    n = len(sites[0].gain)
    streams = [x] * n
    for f, site in zip([*sublayers, None], sites, strict=True):
        normed = [site.gain[i] * unit_rms(s, eps) for i, s in enumerate(streams)]
        all_ = torch.cat(normed, -1)
        low = all_ @ site.down.T / n
        gates = 1 / (1 + torch.exp(-(low / (1 + torch.exp(-low))) @ site.up.T))
        h = sum(g * s for g, s in zip(gates.chunk(n, -1), normed, strict=True)) / n
        if f is None:
            return h
        out = f(h)
        write = [
            2 / (1 + torch.exp(-(all_ * row).sum(-1, keepdim=True) / n)) for row in site.inject
        ]
        streams = [s + w * out for s, w in zip(streams, write, strict=True)]
    raise AssertionError("one site more than sublayers")


def value_residual(x: Tensor, sublayers: Sequence, lambdas: Sequence[tuple]) -> Tensor:
    """2410.17897: from the second layer on, values are l1 V_n + l2 V_1. Attention is given as its
    ``values_of`` and ``attend``.
    """
    h, first = x, None
    for layer in range(len(sublayers) // 2):
        attention, mlp = sublayers[2 * layer : 2 * layer + 2]
        v = attention.values_of(h)
        if layer == 0:
            first = v
            h = h + attention.attend(h, h, v)
        else:
            own, back = lambdas[layer - 1]
            h = h + attention.attend(h, h, own * v + back * first)
        h = h + mlp(h)
    return h


def mudd(x: Tensor, sublayers: Sequence, sites: Sequence[dict], eps: float) -> Tensor:
    """2502.12170, equations 3 to 8 and 10, source by source and way by way. A site has ``w1``,
    ``w2``, ``static`` [way][source], and where sources are normalised ``pre`` (a gain per source)
    and ``post``; the authors' code normalises the residual way only.
    """
    outputs, ways = [x], None
    for layer, site in enumerate(sites):
        attention, mlp = sublayers[2 * layer : 2 * layer + 2]
        query, key, value, stream = ways if ways and len(ways) == 4 else (ways or [x]) * 4
        h = stream + attention.attend(query, key, attention.values_of(value))
        newest = h + mlp(h)
        outputs.append(newest)
        hidden = unit_rms(newest, eps) @ site["w1"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        ways = []
        for way, static in enumerate(site["static"]):
            mixed = 0 * x
            for i, source in enumerate(outputs):
                if site["pre"] is not None:
                    source = site["pre"][i] * unit_rms(source, eps)
                column = site["w2"][:, way * len(outputs) + i]
                mixed = mixed + ((hidden * column).sum(-1) + static[i])[..., None] * source
            if site["pre"] is not None:
                residual = way == len(site["static"]) - 1
                mixed = newest + (site["post"] * unit_rms(mixed, eps) if residual else mixed)
            ways.append(mixed)
    return ways[-1]
