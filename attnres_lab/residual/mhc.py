"""Manifold-constrained hyper-connections (mHC, arXiv 2512.24880, equations 7 to 9), mHC-lite
(arXiv 2601.05732) and iHC (arXiv 2607.28611).

Shapes: B batch, T time, N streams, D width, C coefficients of one site. Matrices over streams are
[target, source].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from attnres_lab.residual.base import ResidualConfig
from attnres_lab.residual.hyper import Connections, Streams, check_streams, normed_product

ROUNDS = 20  # of Sinkhorn-Knopp, the paper's number
OFF = -8.0  # initial logit of what is off at the start: the mixing starts near the identity


@dataclass(frozen=True)
class MHCConfig(ResidualConfig):
    """``mixing``: ``sinkhorn`` is mHC; ``permutations`` is mHC-lite, a convex combination of all N!
    permutation matrices; ``identity`` is iHC, where streams do not mix.
    """

    name: str = "mhc"
    streams: int = 4
    mixing: Literal["sinkhorn", "permutations", "identity"] = "sinkhorn"

    @property
    def label(self) -> str:
        names = {"sinkhorn": "mhc", "permutations": "mhc-lite", "identity": "ihc"}
        return names[self.mixing] + (f"-n{self.streams}" if self.streams != 4 else "")

    def check(self, num_sublayers: int, dim: int) -> None:
        check_streams(self.streams)
        if self.mixing == "permutations" and self.streams > 5:
            raise ValueError(
                f"model.residual.streams: {self.streams} streams have "
                f"{math.factorial(self.streams)} permutations; take 5 or fewer, or sinkhorn"
            )


def sinkhorn(logits: Tensor) -> Tensor:
    """A doubly stochastic matrix [..., N, N] from exp(logits): columns, then rows, ``ROUNDS``
    times; the rows sum to 1 exactly.
    """
    tokens_last = logits.reshape(-1, *logits.shape[-2:]).permute(1, 2, 0)
    # in parts that a second-level cache holds, few enough that calls do not weigh more than sums
    parts = [_Balance.apply(part) for part in tokens_last.split(4096, -1)]  # type: ignore[no-untyped-call]
    # batched products are slow on matrices that are spread over memory
    return torch.cat(parts, -1).permute(2, 0, 1).contiguous().view(logits.shape)


class _Balance(torch.autograd.Function):
    """Sinkhorn-Knopp with the exact gradient of its rounds. The matrix after each is diag(r) E
    diag(c) with E = exp(logits), so a round is two products of E with vectors, and only the factors
    are kept. Matrices [N, N, M], factors [N, M], tokens last: N is small.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        logits = logits.contiguous()  # each round walks along the tokens
        e = (logits - logits.amax((0, 1))).exp_()
        rows, columns, r = [torch.ones_like(e[0])], [], torch.ones_like(e[0])
        product = torch.empty_like(e)
        for _ in range(ROUNDS):
            c = torch.mul(e, r[:, None], out=product).sum(0).reciprocal_()
            r = torch.mul(e, c, out=product).sum(1).reciprocal_()
            rows.append(r)
            columns.append(c)
        ctx.save_for_backward(e, torch.stack(rows), torch.stack(columns))
        return product.mul_(r[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        e, rows, columns = ctx.saved_tensors
        grad, product = grad.contiguous(), torch.empty_like(e)
        d_e = grad * rows[-1][:, None]
        d_c = torch.mul(d_e, e, out=product).sum(0)
        d_e.mul_(columns[-1])
        d_r = torch.mul(grad, e, out=product).mul_(columns[-1]).sum(1)
        of_rows, of_columns = rows.square().neg_(), columns.square().neg_()
        for k in range(ROUNDS, 0, -1):
            d_sum = d_r.mul_(of_rows[k])  # r = 1 / (E c)
            d_e.addcmul_(d_sum[:, None], columns[k - 1])
            d_c = torch.mul(e, d_sum[:, None], out=product).sum(0).add_(d_c)
            d_sum = d_c.mul_(of_columns[k - 1])  # c = 1 / (r E)
            d_e.addcmul_(rows[k - 1][:, None], d_sum)
            d_r = torch.mul(e, d_sum, out=product).sum(1)
            d_c = d_c.zero_()
        balanced: Tensor = d_e.mul_(e)
        return balanced


class MHCSite(nn.Module):
    """The connections of one sublayer: read = sigmoid(c), write = 2 sigmoid(c), mix doubly
    stochastic, with c = gate * (RMSNorm(vec H) W) + bias.

    Choices: W starts at zero, the three gates at 0.01; RMSNorm has no gain (W would absorb it). The
    bias of write is 0 (writes of 1), that of mix makes it near the identity. That of read is +1 on
    stream l mod N and -1 elsewhere: with equal streams, equal reads and no random numbers all
    streams would get equal gradients and stay one stream for ever. Any read starts as the baseline:
    the streams are equal, and PreNorm ignores scale. Without ``mixes`` there is no mix: the first
    sublayer's streams are equal and the last one's are summed, so it could have no gradient.
    """

    permutations: Tensor

    def __init__(
        self, config: MHCConfig, index: int, dim: int, norm_eps: float, mixes: bool
    ) -> None:
        super().__init__()
        n = config.streams
        self.n, self.norm_eps, self.mixes, self.lite = (
            n,
            norm_eps,
            mixes,
            config.mixing == "permutations",
        )
        orders = list(permutations(range(n)))  # the identity first
        mix = (
            (torch.arange(len(orders)) > 0) * OFF
            if self.lite
            else ((1 - torch.eye(n)) * OFF).flatten()
        )
        biases = [2 * torch.eye(n)[index % n] - 1, torch.zeros(n)] + ([mix] if mixes else [])
        self.bias = nn.Parameter(torch.cat(biases))
        self.gate = nn.Parameter(torch.full((len(biases),), 0.01))
        self.projection = nn.Parameter(torch.zeros(n * dim, len(self.bias)))
        self.sizes = [len(bias) for bias in biases]
        if self.lite and mixes:
            self.register_buffer(
                "permutations",
                torch.stack([torch.eye(n)[list(order)] for order in orders]),
                persistent=False,
            )

    def forward(self, h_BTND: Tensor) -> Connections:
        moves_BTC = normed_product(h_BTND.flatten(-2), self.projection, self.norm_eps)
        moves = moves_BTC.split(self.sizes, -1)  # type: ignore[no-untyped-call]
        gated = [gate * part for gate, part in zip(self.gate, moves, strict=True)]
        read, write, *mix = (torch.cat(gated, -1) + self.bias).split(self.sizes, -1)  # type: ignore[no-untyped-call]
        return Connections(read.sigmoid(), self._mix(mix[0]) if mix else None, 2 * write.sigmoid())

    def _mix(self, logits: Tensor) -> Tensor:
        if self.lite:
            return torch.einsum("...p,pmn->...mn", logits.softmax(-1), self.permutations)
        return sinkhorn(logits.unflatten(-1, (self.n, self.n)))  # type: ignore[no-untyped-call]

    def flops_per_token(self, dim: int) -> int:
        """The projection, the read, and where there is one the mix (for mHC-lite, also its sum over
        the permutations).
        """
        total = 2 * self.projection.numel() + 2 * self.n * dim
        if self.mixes:
            total += 2 * self.n**2 * dim + (2 * self.sizes[2] * self.n**2 if self.lite else 0)
        return total


class ManifoldHyperConnections(Streams):
    """mHC, mHC-lite and iHC."""

    Config = MHCConfig

    def __init__(self, config: MHCConfig, num_sublayers: int, dim: int, norm_eps: float) -> None:
        inner = range(1, num_sublayers - 1) if config.mixing != "identity" else range(0)
        sites = [
            MHCSite(config, index, dim, norm_eps, mixes=index in inner)
            for index in range(num_sublayers)
        ]
        super().__init__(config, sites, config.streams, dim, norm_eps)

    def flops_per_token(self) -> int:
        return sum(site.flops_per_token(self.dim) for site in self.sites)  # type: ignore[operator]
