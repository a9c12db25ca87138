"""Depth attention with the options of the paper's ablations (arXiv 2603.15031, Table 4): their
configuration and parameters.

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

Shapes: B batch, T time, D width, R reads that have a choice (those before sublayers 2 .. L, and
the output's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnres_lab.ops import Weighing
from attnres_lab.ops.lean import wide
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
    def weighing(self) -> Weighing:
        """How each read weighs its sources."""
        return Weighing(self.mixing, int(self.heads), self.key_norm, self.temperature)

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
                f"model.residual.heads: {self.heads} heads do not divide model.dim = {dim}; take "
                "a divisor, or kv"
            )
        if self.temperature <= 0:
            raise ValueError(
                f"model.residual.temperature: {self.temperature} is not positive; it divides the "
                "logits, 1 leaves them"
            )
        if self.query_std < 0:
            raise ValueError(
                f"model.residual.query_std: {self.query_std} is negative; 0: queries start at zero"
            )
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


def parameters(config: ReadConfig, counts: Sequence[int], dim: int) -> dict[str, nn.Parameter]:
    """Those of all reads at their start, by name. ``counts``: the number of sources of each of R
    reads.
    """
    if config.mixing == "static":
        # in a row: reads have different numbers of sources
        return {"scalars": nn.Parameter(torch.zeros(sum(counts)))}
    shape = (len(counts), dim)
    named = (
        {"projection": nn.Parameter(torch.zeros(*shape, dim))}
        if config.query == "input"
        else {"pseudo_query": nn.Parameter(torch.zeros(shape))}
    )
    return named | ({"key_gain": nn.Parameter(torch.ones(shape))} if config.key_norm else {})


def input_query(newest_BTD: Tensor, projection_DxD: Tensor, eps: float) -> Tensor:
    """W RMSNorm(newest source) [B, T, D], in fp32 at least."""
    with exact(newest_BTD):
        normed_BTD = F.rms_norm(wide(newest_BTD), newest_BTD.shape[-1:], eps=eps)
        return normed_BTD @ projection_DxD.to(normed_BTD.dtype).T
