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

from attnres_lab.ops.reads import PAPER, Weighing


def wide(x: Tensor) -> Tensor:
    """In fp32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def _keys(v: Tensor, query: Tensor, eps: float, how: Weighing) -> tuple[Tensor, Tensor | None]:
    """Logits [H, M] of one source for queries [H, D], and its inverse rms [M]."""
    logits = torch.mm(query, v.t())
    if not how.key_norm:
        return logits, None
    inverse_rms = torch.linalg.vector_norm(v, dim=-1).square_().div_(v.shape[-1]).add_(eps).rsqrt_()
    return logits.mul_(inverse_rms), inverse_rms


def _by_head(x: Tensor, how: Weighing) -> Tensor:
    """[M, D] as [H, M, E], a view."""
    return x.view(len(x), how.heads, -1).transpose(0, 1)


def _queries(query: Tensor, how: Weighing) -> Tensor:
    """A query [D] as one for each head, [H, D], that is zero outside it."""
    if how.heads == 1:
        return query[None]
    return torch.block_diag(*query.view(how.heads, 1, -1))  # type: ignore[no-any-return,no-untyped-call]


def read(
    sources: Sequence[Tensor], query: Tensor, eps: float, how: Weighing = PAPER
) -> tuple[Tensor, Tensor]:
    """Read sources [M, D] with a query [D] as ``Weighing.query`` gives it (static: logits [S]):
    output [M, D] in the sources' dtype, and weights [S, H, M] (static: [S, 1, 1]).
    """
    query = wide(query)
    with torch.autocast(query.device.type, enabled=False):
        if how.mixing == "static":
            logits = query[:, None, None]
        else:
            queries = _queries(query, how)
            logits = torch.stack([_keys(wide(v), queries, eps, how)[0] for v in sources])
        alpha = how.weights(logits)
        h = torch.zeros_like(sources[0], dtype=query.dtype)
        for v, weight in zip(sources, alpha, strict=True):
            _by_head(h, how).addcmul_(_by_head(wide(v), how), weight[..., None])
    return h.to(sources[0].dtype), alpha


def read_backward(
    grad: Tensor,
    sources: Sequence[Tensor],
    query: Tensor,
    alpha: Tensor,
    eps: float,
    how: Weighing = PAPER,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the sources and of the query. With g = dh: dlogit_i = alpha_i (g . v_i - sum_j
    alpha_j g . v_j), or alpha_i (1 - alpha_i) g . v_i with sigmoid.

    The sum is g . h, but h may have been rounded to bf16, and the gradient of the query would show
    it.
    """
    grad, wide_query = wide(grad), wide(query)
    static = how.mixing == "static"
    with torch.autocast(query.device.type, enabled=False):
        d_logits = _through_weights(_by_head(grad, how), sources, alpha, how)
        queries, d_sources = None if static else _queries(wide_query, how), []
        d_queries = torch.zeros_like(d_logits if queries is None else queries)
        for v, weight, d_logit in zip(sources, alpha, d_logits, strict=True):
            v_wide = wide(v)
            d_v = torch.mul(_by_head(grad, how), weight[..., None]).transpose(0, 1)
            d_v = d_v.reshape(grad.shape)
            if queries is not None:
                logits, inverse_rms = _keys(v_wide, queries, eps, how)
                if inverse_rms is not None:
                    along_v = (d_logit * logits).sum(0) * inverse_rms.square() / -v.shape[-1]
                    d_logit = d_logit * inverse_rms
                    d_v.addcmul_(v_wide, along_v[:, None])
                d_queries.addmm_(d_logit, v_wide)
                d_v.addmm_(d_logit.t(), queries)
            d_sources.append(d_v.to(v.dtype))
    if static:
        return d_sources, d_logits.flatten().to(query.dtype)
    d_query = d_queries.view(how.heads, how.heads, -1).diagonal().t().flatten()
    return d_sources, d_query.to(query.dtype)


def _through_weights(
    grad_HME: Tensor, sources: Sequence[Tensor], alpha: Tensor, how: Weighing
) -> Tensor:
    """Gradient of the logits, in the shape of the weights."""
    dots = torch.stack([torch.linalg.vecdot(grad_HME, _by_head(wide(v), how)) for v in sources])
    if how.mixing == "sigmoid":
        return alpha * (1 - alpha) * dots
    if how.mixing == "static":
        dots = dots.sum((1, 2), keepdim=True)
    return alpha * (dots - (alpha * dots).sum(0))


@torch.library.custom_op("attnres::depth_read", mutates_args=())
def depth_read(
    sources: Sequence[Tensor], query: Tensor, eps: float, mixing: str, heads: int, key_norm: bool
) -> tuple[Tensor, Tensor]:
    """``read`` as an operator; on a GPU in Triton where it is installed and knows the dtype."""
    how = Weighing(mixing, heads, key_norm)  # type: ignore[arg-type]
    kernels = _kernels(sources, how)
    return (kernels.depth_read if kernels else read)(sources, query, eps, how)


@torch.library.custom_op("attnres::depth_read_backward", mutates_args=())
def depth_read_backward(  # noqa: PLR0913  (an operator takes plain values)
    grad: Tensor,
    sources: Sequence[Tensor],
    query: Tensor,
    alpha: Tensor,
    eps: float,
    mixing: str,
    heads: int,
    key_norm: bool,
) -> tuple[list[Tensor], Tensor]:
    """``read_backward`` as an operator."""
    how = Weighing(mixing, heads, key_norm)  # type: ignore[arg-type]
    backward = kernels.depth_read_backward if (kernels := _kernels(sources, how)) else read_backward
    result: tuple[list[Tensor], Tensor] = backward(grad, sources, query, alpha, eps, how)
    return result


def _kernels(sources: Sequence[Tensor], how: Weighing) -> Any:
    if not sources[0].is_cuda:
        return None
    try:
        from attnres_lab.ops import fused
    except ImportError:  # no Triton
        return None
    return fused if fused.serves(sources, how) else None


@depth_read.register_fake
def _(
    sources: Sequence[Tensor], query: Tensor, eps: float, mixing: str, heads: int, key_norm: bool
) -> tuple[Tensor, Tensor]:
    v, items = sources[0], (1, 1) if mixing == "static" else (heads, sources[0].shape[0])
    dtype = torch.promote_types(v.dtype, torch.float32)
    return v.new_empty(v.shape), v.new_empty(len(sources), *items, dtype=dtype)


@depth_read_backward.register_fake
def _(
    grad: Tensor, sources: Sequence[Tensor], query: Tensor, alpha: Tensor, eps: float, *how: Any
) -> tuple[list[Tensor], Tensor]:
    return [v.new_empty(v.shape) for v in sources], torch.empty_like(query)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    sources, query, *ctx.how = inputs
    ctx.save_for_backward(query, output[1], *sources)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _alpha: Tensor) -> tuple[Any, ...]:
    query, alpha, *sources = ctx.saved_tensors
    d_sources, d_query = depth_read_backward(grad, sources, query, alpha, *ctx.how)
    return d_sources, d_query, None, None, None, None


depth_read.register_autograd(_backward, setup_context=_save)


def depth_attention(
    sources: Sequence[Tensor],
    pseudo_query: Tensor,
    key_gain: Tensor | None,
    eps: float,
    weighing: Weighing = PAPER,
) -> Tensor:
    """The twin of ``naive.depth_attention``."""
    flat = [v.reshape(-1, v.shape[-1]) for v in sources]
    query = weighing.query(wide(pseudo_query), None if key_gain is None else wide(key_gain)).to(
        torch.promote_types(sources[0].dtype, torch.float32)
    )
    how = (weighing.mixing, weighing.heads, weighing.key_norm)
    h: Tensor = depth_read(flat, query, eps, *how)[0]
    return h.view(sources[0].shape)
