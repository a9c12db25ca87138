"""Attention Residuals (arXiv 2603.15031) over depth in a model of transformers.

Needs torch and transformers only. Every sublayer (attention, MLP) reads, in place of the running
sum, the depth-weighted sum of the embedding and the outputs of the sublayers before it, or of the
sums of their blocks. The stock layers are used as they are: their norms take the reads, and what
their sublayers put out becomes a source.

Shapes: S sources, B batch, T time, D width, H heads, E = D / H.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig as StockConfig
from transformers import LlamaForCausalLM as Stock


class AttnResConfig(StockConfig):  # type: ignore[misc]
    """The stock config, and ``attnres``: how the reads are made."""

    model_type = "attnres"


class DepthReads(nn.Module):
    """The sources of the tokens under way, and the parameters of each read [reads, D]; the first
    sublayer reads the embedding alone.
    """

    def __init__(self, options: dict[str, Any], eps: float, dim: int) -> None:
        super().__init__()
        self.options, self.eps = options, eps
        shape = (options["reads"], dim)
        self.pseudo_query = nn.Parameter(torch.zeros(shape))
        if options["key_norm"]:
            self.key_gain = nn.Parameter(torch.ones(shape))
        self.done: list[Tensor] = []
        self.partial: Tensor | None = None

    def start(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Before the first norm."""
        self.done, self.partial = [args[0]], None

    def clear(self, *_: Any) -> None:
        """After the last norm: keep no tensor of this pass."""
        self.done, self.partial = [], None

    def push(self, index: int, _: nn.Module, args: Any, out: Any) -> None:
        """After sublayer ``index``: its output joins the open block."""
        out_BTD = out[0] if isinstance(out, tuple) else out
        self.partial = out_BTD if self.partial is None else self.partial + out_BTD
        if index + 1 in self.options["ends"]:
            self.done.append(self.partial)
            self.partial = None

    def read(self, index: int, _: nn.Module, args: Any) -> tuple[Tensor]:
        """What enters the norm before sublayer ``index`` (from 1), or the last norm."""
        window = self.options["window"]
        closed = self.done[1:][-window:] if window else self.done[1:]
        sources = [self.done[0], *closed, *([] if self.partial is None else [self.partial])]
        v_SBTD = torch.stack(sources)
        wide = v_SBTD if v_SBTD.dtype == torch.float64 else v_SBTD.float()
        query_D, key_SBTD = self.pseudo_query[index - 1].to(wide.dtype), wide
        if self.options["key_norm"]:
            query_D = query_D * self.key_gain[index - 1].to(wide.dtype)
            key_SBTD = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        by_head = (*wide.shape[:-1], self.options["heads"], -1)
        products_SBTHE = (key_SBTD * query_D).reshape(by_head)
        logits_SBTH = products_SBTHE.sum(-1) / self.options["temperature"]
        if self.options["mixing"] == "sigmoid":
            alpha_SBTH, start = logits_SBTH.sigmoid(), 0.5
        else:
            alpha_SBTH, start = logits_SBTH.softmax(0), 1 / len(sources)
        h_BTHE = (alpha_SBTH[..., None] * wide.reshape(by_head)).sum(0)
        h_BTD = h_BTHE.flatten(-2).to(v_SBTD.dtype)
        return (h_BTD / start if self.options["scale"] == "sum" else h_BTD,)


class AttnResForCausalLM(Stock):  # type: ignore[misc]
    """The stock model under depth attention."""

    config_class = AttnResConfig
    supports_gradient_checkpointing = False

    def __init__(self, config: AttnResConfig) -> None:
        super().__init__(config)
        reads = DepthReads(config.attnres, config.rms_norm_eps, config.hidden_size)
        self.residual = reads
        index = 0
        for layer in self.model.layers:
            for norm, sublayer in (
                (layer.input_layernorm, layer.self_attn),
                (layer.post_attention_layernorm, layer.mlp),
            ):
                norm.register_forward_pre_hook(partial(reads.read, index) if index else reads.start)
                sublayer.register_forward_hook(partial(reads.push, index))
                index += 1
        if config.attnres["output_read"]:
            self.model.norm.register_forward_pre_hook(partial(reads.read, index))
        self.model.norm.register_forward_hook(reads.clear)
