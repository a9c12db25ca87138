"""Depth attention of other packages, where they are installed, behind our operator's signature."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Read = Callable[[Sequence[Tensor], Tensor, Tensor, float], Tensor]


def attn_res(sources: Sequence[Tensor], query: Tensor, gain: Tensor, eps: float) -> Tensor:
    """attn-res (PyPI). It has no key gain, so the query carries it."""
    from attn_res.main import AttnResOperator

    operator = AttnResOperator(query.shape[0], eps)
    h: Tensor = torch.func.functional_call(
        operator, {"pseudo_query": query * gain}, (torch.stack(tuple(sources)),)
    )
    return h


def fla_naive(sources: Sequence[Tensor], query: Tensor, gain: Tensor, eps: float) -> Tensor:
    """fla-core, reference."""
    from fla.ops.attnres import naive_attnres

    h: Tensor = naive_attnres(query, list(sources), gain, rms_eps=eps)
    return h


def fla_fused(sources: Sequence[Tensor], query: Tensor, gain: Tensor, eps: float) -> Tensor:
    """fla-core, Triton."""
    from fla.ops.attnres import fused_attnres

    h: Tensor = fused_attnres(query, list(sources), gain, rms_eps=eps)
    return h


def liger(sources: Sequence[Tensor], query: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Liger-Kernel, Triton."""
    from liger_kernel.transformers.functional import liger_attn_res

    h: Tensor = liger_attn_res(torch.stack(tuple(sources)), query, gain, eps)
    return h


#: name: (read, import name, whether it needs a GPU). flash-attn-res has no single read to put here:
#: its two phases are called by a model of its own.
PEERS: dict[str, tuple[Read, str, bool]] = {
    "attn-res": (attn_res, "attn_res", False),
    "fla-naive": (fla_naive, "fla", False),
    "fla-fused": (fla_fused, "fla", True),
    "liger": (liger, "liger_kernel", True),
}


def installed(device: str) -> dict[str, Read]:
    """The peers that can be measured on this device."""
    return {
        name: read
        for name, (read, module, gpu) in PEERS.items()
        if importlib.util.find_spec(module) and (device == "cuda" or not gpu)
    }
