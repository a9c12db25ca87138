"""Hyper-connections: several residual streams with learned connections (arXiv 2409.19606, section 2
and algorithm 2).

Shapes: B batch, T time, N streams, D width. Matrices over streams are [target, source].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer, exact


class Connections(NamedTuple):
    """How a sublayer reads the streams [..., N], how they mix [..., N, N] (None: not at all), and
    how its output is written [..., N].
    """

    read: Tensor
    mix: Tensor | None
    write: Tensor


def _weighted_sum(weights_MN: Tensor, streams_MND: Tensor) -> Tensor:
    total = streams_MND[:, 0] * weights_MN[:, 0, None]
    for n in range(1, weights_MN.shape[1]):  # torch.bmm runs a slow loop on products this small
        total.addcmul_(streams_MND[:, n], weights_MN[:, n, None])
    return total


class _Read(torch.autograd.Function):
    """What a sublayer reads [M, D] of streams [M, N, D] with weights [M, N]; and the streams, so
    that the gradient of their later use comes here and takes this one's in the same pass.
    """

    @staticmethod
    def forward(ctx: Any, streams: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(streams, weights)
        return _weighted_sum(weights, streams), streams

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
        streams, weights = ctx.saved_tensors
        d_streams = torch.addcmul(later, weights[:, :, None], grad[:, None])
        return d_streams, torch.linalg.vecdot(streams, grad[:, None])


class _Step(torch.autograd.Function):
    """Streams after a sublayer, mix H + write out^T, with one new tensor of their size forward and
    one backward. Shapes: M tokens; streams [M, N, D], out [M, D].
    """

    @staticmethod
    def forward(
        ctx: Any, streams: Tensor, mix: Tensor | None, write: Tensor, out: Tensor
    ) -> Tensor:
        # batched products are slow on matrices that are spread over memory
        mix = None if mix is None else mix.contiguous()
        ctx.save_for_backward(streams, mix, write, out)
        written = write[:, :, None], out[:, None]
        if mix is None:
            return torch.addcmul(streams, *written)
        return torch.bmm(mix, streams).addcmul_(*written)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        streams, mix, write, out = ctx.saved_tensors
        d_write, d_out = torch.linalg.vecdot(grad, out[:, None]), _weighted_sum(write, grad)
        if mix is None:
            return grad, None, d_write, d_out
        return torch.bmm(mix.mT, grad), torch.bmm(grad, streams.mT), d_write, d_out


class _NormedProduct(torch.autograd.Function):
    """RMSNorm(x) W [M, C] without keeping the normalised x: the norm has no gain, so that it is a
    factor per token. x [M, D], W [D, C].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse_rms = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        product = torch.mm(x, weight).mul_(inverse_rms)
        ctx.save_for_backward(x, weight, product, inverse_rms)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, product, inverse_rms = ctx.saved_tensors
        along_x = (grad * product).sum(-1, keepdim=True).mul_(inverse_rms.square())
        grad = grad * inverse_rms
        d_x = torch.mm(grad, weight.t()).addcmul_(x, along_x, value=-1 / x.shape[-1])
        return d_x, torch.mm(grad.t(), x).t(), None


def normed_product(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm(x) W [..., C], the norm without a gain, of x [..., D] and W [D, C]."""
    flat = _NormedProduct.apply(x.reshape(-1, x.shape[-1]), weight, eps)  # type: ignore[no-untyped-call]
    return flat.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


class Streams(Residual):
    """N copies of the embedding; h = sum_n read_n H_n, then H <- mix H + write f(h)^T for each
    sublayer; at the end the sum of the streams.
    """

    def __init__(
        self,
        config: ResidualConfig,
        sites: Sequence[nn.Module],
        streams: int,
        dim: int,
        norm_eps: float,
    ) -> None:
        super().__init__(config, len(sites), dim, norm_eps)
        self.streams = streams
        # each maps the streams to the Connections of one sublayer
        self.sites = nn.ModuleList(sites)

    def start(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unsqueeze(-2).expand(*x_BTD.shape[:-1], self.streams, -1)

    def step(self, state: Tensor, sublayer: Sublayer, index: int) -> Tensor:
        with exact(state):
            read, mix, write = (
                None if x is None else x.expand(*state.shape[:2], *x.shape[-n:]).flatten(0, 1)
                for x, n in zip(self.sites[index](state), (1, 2, 1), strict=True)
            )
            flat = state.flatten(0, 1)
            h_MD, flat = _Read.apply(flat, read)  # type: ignore[no-untyped-call]
        out_MD = sublayer(h_MD.view(*state.shape[:2], -1)).to(state.dtype).flatten(0, 1)
        with exact(state):
            streams_MND: Tensor = _Step.apply(flat, mix, write, out_MD)  # type: ignore[no-untyped-call]
        return streams_MND.view(state.shape)

    def finish(self, state: Tensor) -> Tensor:
        return state.sum(-2)


def check_streams(streams: int) -> None:
    """Raises ValueError, with the key and the remedy, for fewer than two."""
    if streams < 2:
        raise ValueError(
            f"model.residual.streams: {streams} is fewer than 2; one stream is the baseline"
        )


@dataclass(frozen=True)
class HyperConfig(ResidualConfig):
    """``dynamic``: connections that also depend on the streams (the paper's DHC), else learned
    constants (SHC).
    """

    name: str = "hyper"
    streams: int = 4
    dynamic: bool = True

    @property
    def label(self) -> str:
        return (
            "hyper"
            + (f"-n{self.streams}" if self.streams != 4 else "")
            + ("" if self.dynamic else "-static")
        )

    def check(self, num_sublayers: int, dim: int) -> None:
        check_streams(self.streams)


class HyperSite(nn.Module):
    """The connections of one sublayer.

    Constants start as PreNorm: read one-hot on stream l mod N, mix the identity, write ones. The
    dynamic part adds scale * tanh(norm(H_n) W) from each source stream n: to read_n, to column n of
    mix, to write_n; W is zero at the start, the two scales (of read and mix, of write) are 0.01.
    Choices: norm is RMSNorm without a gain (W would absorb it) where the paper's code has
    LayerNorm; the paper's smaller initial output projections are left out, since all variants share
    the trunk's weights.
    """

    def __init__(self, config: HyperConfig, index: int, dim: int, norm_eps: float) -> None:
        super().__init__()
        n = config.streams
        self.norm_eps = norm_eps
        self.read = nn.Parameter(torch.eye(n)[index % n])
        self.mix = nn.Parameter(torch.eye(n))
        self.write = nn.Parameter(torch.ones(n))
        # columns: read, mix to each target, write
        self.projection = nn.Parameter(torch.zeros(dim, n + 2)) if config.dynamic else None
        if config.dynamic:
            self.scale = nn.Parameter(torch.full((2,), 0.01))

    def forward(self, h_BTND: Tensor) -> Connections:
        if self.projection is None:
            return Connections(self.read, self.mix, self.write)
        moves = normed_product(h_BTND, self.projection, self.norm_eps).tanh()
        read, mix, write = moves[..., 0], moves[..., 1:-1].mT, moves[..., -1]
        return Connections(
            self.read + self.scale[0] * read,
            self.mix + self.scale[0] * mix,
            self.write + self.scale[1] * write,
        )


class HyperConnections(Streams):
    """Hyper-connections, static or dynamic."""

    Config = HyperConfig

    def __init__(self, config: HyperConfig, num_sublayers: int, dim: int, norm_eps: float) -> None:
        super().__init__(
            config,
            [HyperSite(config, index, dim, norm_eps) for index in range(num_sublayers)],
            config.streams,
            dim,
            norm_eps,
        )

    def flops_per_token(self) -> int:
        n = self.streams
        # read and mix; the write is an outer product, no sum
        per_sublayer = 2 * n * self.dim * (1 + n)
        if self.config.dynamic:
            per_sublayer += 2 * n * self.dim * (n + 2)
        return per_sublayer * self.num_sublayers
