"""Depth attention: one operator, several implementations that agree with ``naive``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from attnres_lab.ops import lean, naive
from attnres_lab.ops.reads import PAPER, Weighing


def depth_attention(
    sources: Sequence[Tensor],
    pseudo_query: Tensor,
    key_gain: Tensor | None,
    eps: float,
    weighing: Weighing = PAPER,
) -> Tensor:
    """One read: the depth-weighted sum of the raw (not normalised) sources, [..., D] (arXiv
    2603.15031, section 3).

    Sources share shape [..., D], dtype and device; query and key gain are [D] on that device. The
    query may be one per token, in the shape of a source, and with static mixing is the S learned
    logits. Statistics are in fp32 at least. Raises ValueError for anything else.
    """
    _check(sources, pseudo_query, key_gain, weighing)
    per_token = pseudo_query.ndim > 1
    read = naive.depth_attention if per_token else lean.depth_attention
    return read(sources, pseudo_query, key_gain, eps, weighing)


def depth_weights(
    sources: Sequence[Tensor],
    pseudo_query: Tensor,
    key_gain: Tensor | None,
    eps: float,
    weighing: Weighing = PAPER,
) -> Tensor:
    """Weights [S, ...] of one read, the mean over heads, in fp32 at least; arguments and errors as
    ``depth_attention``.
    """
    _check(sources, pseudo_query, key_gain, weighing)
    return naive.depth_weights(sources, pseudo_query, key_gain, eps, weighing)


def _check(
    sources: Sequence[Tensor], pseudo_query: Tensor, key_gain: Tensor | None, weighing: Weighing
) -> None:
    if not sources:
        raise ValueError("depth attention: no sources; give at least the embedding")
    first = sources[0]
    for place, v in enumerate(sources):
        for what in ("shape", "dtype", "device"):
            if getattr(v, what) != getattr(first, what):
                raise ValueError(
                    f"depth attention: {what} of source {place} is {_show(getattr(v, what))}, of "
                    f"source 0 {_show(getattr(first, what))}"
                )
    if first.shape[-1] % weighing.heads:
        raise ValueError(
            f"depth attention: {weighing.heads} heads do not divide the sources' width "
            f"{first.shape[-1]}"
        )
    expected, asked = (first.shape[-1],), "the sources' width asks"
    if weighing.mixing == "static":
        expected, asked = (len(sources),), "static mixing asks"
    for name, parameter in (("pseudo_query", pseudo_query), ("key_gain", key_gain)):
        if parameter is None:
            continue
        per_token = name == "pseudo_query" and parameter.shape == first.shape
        if parameter.shape != expected and not per_token:
            raise ValueError(
                f"depth attention: {name} has shape {_show(parameter.shape)}, {asked} for "
                f"{_show(expected)}"
            )
        if parameter.device != first.device:
            raise ValueError(
                f"depth attention: {name} is on {parameter.device}, the sources on {first.device}"
            )


def _show(value: object) -> str:
    return str(tuple(value)) if isinstance(value, tuple) else str(value)


__all__ = ["PAPER", "Weighing", "depth_attention", "depth_weights"]
