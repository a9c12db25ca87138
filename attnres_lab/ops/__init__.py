"""Depth attention: one operator, several implementations that agree with ``naive``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from attnres_lab.ops import lean, naive


def depth_attention(
    sources: Sequence[Tensor], pseudo_query: Tensor, key_gain: Tensor, eps: float
) -> Tensor:
    """One read: the depth-weighted sum of the raw (not normalised) sources, [..., D] (arXiv
    2603.15031, section 3).

    Sources share shape [..., D], dtype and device; query and key gain are [D] on that device.
    Statistics are in fp32 at least. Raises ValueError for anything else.
    """
    _check(sources, pseudo_query, key_gain)
    return lean.depth_attention(sources, pseudo_query, key_gain, eps)


def depth_weights(
    sources: Sequence[Tensor], pseudo_query: Tensor, key_gain: Tensor, eps: float
) -> Tensor:
    """Weights [S, ...] of one read, in fp32 at least; arguments and errors as
    ``depth_attention``.
    """
    _check(sources, pseudo_query, key_gain)
    return naive.depth_weights(sources, pseudo_query, key_gain, eps)


def _check(sources: Sequence[Tensor], pseudo_query: Tensor, key_gain: Tensor) -> None:
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
    for name, parameter in (("pseudo_query", pseudo_query), ("key_gain", key_gain)):
        if parameter.shape != first.shape[-1:]:
            raise ValueError(
                f"depth attention: {name} has shape {_show(parameter.shape)}, the sources' width "
                f"asks for {_show(first.shape[-1:])}"
            )
        if parameter.device != first.device:
            raise ValueError(
                f"depth attention: {name} is on {parameter.device}, the sources on {first.device}"
            )


def _show(value: object) -> str:
    return str(tuple(value)) if isinstance(value, tuple) else str(value)


__all__ = ["depth_attention", "depth_weights"]
