"""One read that keeps references instead of stacks: for the backward it saves only the depth
weights and the sources that exist anyway.

A registered operator with a fake implementation, so that ``torch.compile`` sees one node.
Statistics are in fp32 at least. Shapes: S sources, M tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In fp32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def _keys(v: Tensor, query: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Logit and inverse rms of one source, [M] each."""
    inverse_rms = torch.linalg.vector_norm(v, dim=-1).square_().div_(v.shape[-1]).add_(eps).rsqrt_()
    return torch.mv(v, query).mul_(inverse_rms), inverse_rms


def read(sources: Sequence[Tensor], query: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Read sources [M, D] with a query [D], the key gain folded in: output [M, D] in the sources'
    dtype, and weights [S, M].
    """
    query = wide(query)
    with torch.autocast(query.device.type, enabled=False):
        alpha = torch.stack([_keys(wide(v), query, eps)[0] for v in sources]).softmax(0)
        h = wide(sources[0]) * alpha[0, :, None]
        for v, weight in zip(sources[1:], alpha[1:], strict=True):
            h.addcmul_(wide(v), weight[:, None])
    return h.to(sources[0].dtype), alpha


def read_backward(
    grad: Tensor, sources: Sequence[Tensor], query: Tensor, alpha: Tensor, eps: float
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the sources and of the query. With g = dh: dlogit_i = alpha_i (g . v_i - sum_j
    alpha_j g . v_j).

    The sum is g . h, but h may have been rounded to bf16, and the gradient of the query would show
    it.
    """
    grad, wide_query = wide(grad), wide(query)
    with torch.autocast(query.device.type, enabled=False):
        dots = torch.stack([torch.linalg.vecdot(grad, wide(v)) for v in sources])
        d_logits = alpha * (dots - (alpha * dots).sum(0))
        d_query, d_sources = torch.zeros_like(wide_query), []
        for v, weight, d_logit in zip(sources, alpha, d_logits, strict=True):
            v_wide = wide(v)
            logit, inverse_rms = _keys(v_wide, wide_query, eps)
            along_v = -d_logit * logit * inverse_rms.square() / v.shape[-1]
            d_logit = d_logit * inverse_rms
            d_query.addmv_(v_wide.t(), d_logit)
            d_v = (
                (grad * weight[:, None])
                .addcmul_(d_logit[:, None], wide_query)
                .addcmul_(v_wide, along_v[:, None])
            )
            d_sources.append(d_v.to(v.dtype))
    return d_sources, d_query.to(query.dtype)


@torch.library.custom_op("attnres::depth_read", mutates_args=())
def depth_read(sources: Sequence[Tensor], query: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``read`` as an operator; on a GPU in Triton where it is installed and knows the dtype."""
    kernels = _kernels(sources)
    return kernels.depth_read(sources, query, eps) if kernels else read(sources, query, eps)


@torch.library.custom_op("attnres::depth_read_backward", mutates_args=())
def depth_read_backward(
    grad: Tensor, sources: Sequence[Tensor], query: Tensor, alpha: Tensor, eps: float
) -> tuple[list[Tensor], Tensor]:
    """``read_backward`` as an operator."""
    backward = kernels.depth_read_backward if (kernels := _kernels(sources)) else read_backward
    result: tuple[list[Tensor], Tensor] = backward(grad, sources, query, alpha, eps)
    return result


def _kernels(sources: Sequence[Tensor]) -> Any:
    if not sources[0].is_cuda:
        return None
    try:
        from attnres_lab.ops import fused
    except ImportError:  # no Triton
        return None
    return fused if fused.serves(sources) else None


@depth_read.register_fake
def _(sources: Sequence[Tensor], query: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    v = sources[0]
    alpha = v.new_empty(len(sources), v.shape[0], dtype=torch.promote_types(v.dtype, torch.float32))
    return v.new_empty(v.shape), alpha


@depth_read_backward.register_fake
def _(
    grad: Tensor, sources: Sequence[Tensor], query: Tensor, alpha: Tensor, eps: float
) -> tuple[list[Tensor], Tensor]:
    return [v.new_empty(v.shape) for v in sources], torch.empty_like(query)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    sources, query, ctx.eps = inputs
    ctx.save_for_backward(query, output[1], *sources)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _alpha: Tensor) -> tuple[list[Tensor], Tensor, None]:
    query, alpha, *sources = ctx.saved_tensors
    d_sources, d_query = depth_read_backward(grad, sources, query, alpha, ctx.eps)
    return d_sources, d_query, None


depth_read.register_autograd(_backward, setup_context=_save)


def depth_attention(
    sources: Sequence[Tensor], pseudo_query: Tensor, key_gain: Tensor, eps: float
) -> Tensor:
    """The twin of ``naive.depth_attention``."""
    flat = [v.reshape(-1, v.shape[-1]) for v in sources]
    query = (wide(pseudo_query) * wide(key_gain)).to(
        torch.promote_types(sources[0].dtype, torch.float32)
    )
    h: Tensor = depth_read(flat, query, eps)[0]
    return h.view(sources[0].shape)
