"""Depth attention with the options of the paper's ablations (arXiv 2603.15031, Table 4): the
general read.

    logit_i = q . k_i / temperature
    alpha = softmax_i or sigmoid of the logits
    h = sum_i alpha_i v_i

Choices where the paper says only a word:

- ``query: input``: q = W_l RMSNorm(newest source), the newest being the output, block sum or
  partial sum that the sublayer just before completed;
  W_l is D x D and starts at zero; this RMSNorm has no gain.
- ``mixing: sigmoid``: alpha_i = sigmoid(logit_i), not normalised: 1/2 each at the start, which
  PreNorm does not see.
- ``mixing: static``: alpha = softmax of learned scalars, a scalar per read and source, zero at the
  start; no query and no keys.
- ``key_norm: false``: k_i = v_i, and no gain: it would be one with the query.
- ``heads``: contiguous groups of channels, each with its own logits and weights; keys are
  normalised over all D channels, before the split.
- ``scale: sum``: h is divided by the weight that a source has at the start (1 / S, with sigmoid
  1/2), so that reads start as the sum of their sources and the eps of the norm behind them weighs
  as much as in the baseline (docs/decisions/009).
- ``output_read: false``: the final hidden state is the plain sum of all sources, as in the
  baseline.

Shapes: S sources, B batch, T time, D width, H heads, E = D/H, R reads that have a choice (those
before sublayers 2 .. L, and the output's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attnres_lab.residual.base import ResidualConfig, exact


@dataclass(frozen=True)
class ReadConfig(ResidualConfig):
    """Options of the reads; the defaults are the paper's method."""

    query: Literal["learned", "input"] = "learned"
    mixing: Literal["softmax", "sigmoid", "static"] = "softmax"
    key_norm: bool = True
    heads: int | str = 1  # "kv": as many as the model has KV heads
    temperature: float = 1.0
    output_read: bool = True
    query_std: float = 0.0  # of the pseudo-queries at the start
    scale: Literal["mean", "sum"] = "mean"  # of a read at the start
    later = ("query_std", "scale")

    @property
    def plain(self) -> bool:
        """Whether each read is ``ops.depth_attention``: no option is given but for start and
        scale.
        """
        return not replace(self, query_std=0.0, scale="mean").suffix

    @property
    def has_queries(self) -> bool:
        return self.query == "learned" and self.mixing != "static"

    def on(self, kv_heads: int) -> ReadConfig:
        return replace(self, heads=kv_heads) if self.heads == "kv" else self

    @property
    def suffix(self) -> str:
        """Names the options that are not the defaults: ``-sigmoid-h16``."""
        names = {
            "input": self.query == "input",
            self.mixing: self.mixing != "softmax",
            "nokeynorm": not self.key_norm,
            f"h{self.heads}": self.heads != 1,
            f"t{self.temperature:g}": self.temperature != 1,
            "noread": not self.output_read,
            f"q{self.query_std:g}": self.query_std != 0,
            "sum": self.scale == "sum",
        }
        return "".join(f"-{name}" for name, given in names.items() if given)

    def check(self, num_sublayers: int, dim: int) -> None:
        if not isinstance(self.heads, int):
            raise ValueError(
                f"model.residual.heads: '{self.heads}' is neither a number nor kv, the number of "
                "KV heads"
            )
        if self.heads < 1 or dim % self.heads:
            raise ValueError(
                f"model.residual.heads: {self.heads} heads do not divide model.dim = {dim}"
            )
        if self.temperature <= 0:
            raise ValueError(f"model.residual.temperature: {self.temperature} is not positive")
        if self.query_std < 0:
            raise ValueError(f"model.residual.query_std: {self.query_std} is negative")
        if self.query_std and not self.has_queries:
            raise ValueError(
                "model.residual.query_std: there is no pseudo-query to start with; leave it out, "
                "or take query learned and mixing softmax or sigmoid"
            )
        if self.mixing == "static":
            for key, given in {
                "query": self.query != "learned",
                "key_norm": not self.key_norm,
                "heads": self.heads != 1,
            }.items():
                if given:
                    raise ValueError(
                        f"model.residual.{key}: static mixing has neither query nor keys; leave "
                        "it out, or take mixing softmax or sigmoid"
                    )


class Reads(nn.Module):
    """All reads of a model. ``counts``: the number of sources of each of the R reads."""

    def __init__(
        self, config: ReadConfig, counts: Sequence[int], dim: int, norm_eps: float
    ) -> None:
        super().__init__()
        self.config, self.dim, self.norm_eps, self.counts = config, dim, norm_eps, tuple(counts)
        if config.mixing == "static":
            # in a row: reads have different numbers of sources
            self.scalars = nn.Parameter(torch.zeros(sum(counts)))
            return
        if config.query == "input":
            self.projection = nn.Parameter(torch.zeros(len(counts), dim, dim))
        else:
            self.pseudo_query = nn.Parameter(torch.zeros(len(counts), dim))
        if config.key_norm:
            self.key_gain = nn.Parameter(torch.ones(len(counts), dim))

    def start(self) -> tuple[dict[str, Tensor], ...]:
        """The parameters of each read. One unbind per forward pass: indexing in every read would
        build a full-size gradient each time.
        """
        parts: dict[str, Any] = {
            name: torch.split(parameter, list(self.counts))
            if name == "scalars"
            else parameter.unbind()
            for name, parameter in self.named_parameters()
        }
        return tuple(
            dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)
        )

    def forward(
        self, sources: Sequence[Tensor], parameters: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The hidden state [B, T, D] in the sources' dtype, and the weights [S, B, T], averaged
        over heads.
        """
        v_SBTD = torch.stack(tuple(sources))
        v_SBTD = v_SBTD if v_SBTD.dtype == torch.float64 else v_SBTD.float()
        v_SBTHE = self._split(v_SBTD)
        with exact(v_SBTD):
            logits_SBTH = self._logits(v_SBTD, parameters) / self.config.temperature
            alpha_SBTH = (
                logits_SBTH.sigmoid() if self.config.mixing == "sigmoid" else logits_SBTH.softmax(0)
            )
            h_BTHE = torch.einsum("sbth,sbthe->bthe", alpha_SBTH, v_SBTHE)
        return h_BTHE.flatten(-2).to(sources[0].dtype), alpha_SBTH.mean(-1)

    def _logits(self, v_SBTD: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        if self.config.mixing == "static":
            return (
                parameters["scalars"]
                .to(v_SBTD.dtype)[:, None, None, None]
                .expand(*v_SBTD.shape[:3], 1)
            )
        k_SBTD = v_SBTD
        if self.config.key_norm:
            k_SBTD = self._norm(v_SBTD) * parameters["key_gain"].to(v_SBTD.dtype)
        k_SBTHE = self._split(k_SBTD)
        if self.config.query == "input":
            q_BTD = self._norm(v_SBTD[-1]) @ parameters["projection"].to(v_SBTD.dtype).T
            return torch.einsum("sbthe,bthe->sbth", k_SBTHE, self._split(q_BTD))
        q_HE = self._split(parameters["pseudo_query"].to(v_SBTD.dtype))
        return torch.einsum("sbthe,he->sbth", k_SBTHE, q_HE)

    def _split(self, x_D: Tensor) -> Tensor:
        """The channels, last, as heads [..., H, E]."""
        return x_D.view(*x_D.shape[:-1], int(self.config.heads), -1)

    def _norm(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).add(self.norm_eps).rsqrt()

    def flops_per_token(self) -> int:
        """A logit (but for static mixing) and a weighted value per source, 2 D each; a projection
        of 2 D D per read.
        """
        per_source = 2 * self.dim if self.config.mixing == "static" else 4 * self.dim
        per_read = 2 * self.dim**2 if self.config.query == "input" else 0
        return per_source * sum(self.counts) + per_read * len(self.counts)
