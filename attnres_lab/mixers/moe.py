"""Mixture of experts with a sigmoid router, balanced without an auxiliary loss (DeepSeek-V3, arXiv
2412.19437, section 2.1.2, as Kimi Linear, arXiv 2510.26692, uses it).

Shapes: B batch, T time, N = B T tokens, D width, E experts, K experts of a token, F expert width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from attnres_lab.mixers.base import Mixer, State, Trunk, draw, exact, wide
from attnres_lab.mixers.swiglu import MLPConfig, SwiGLUConfig


@dataclass(frozen=True)
class MoEConfig(MLPConfig):
    """The defaults of ``scale`` and ``balance_rate`` are Kimi Linear's."""

    name: str = "moe"
    experts: int = 8
    top_k: int = 2
    shared: int = 1  # experts that always run
    expert_dim: int | None = None  # None: the dense width / (top_k + shared), rounded down
    scale: float = 2.446  # what the weights of a token's experts sum to
    balance_rate: float = 1e-3  # change of an expert's bias per optimiser step
    dense_layers: int = 1  # the first layers have a dense MLP of model.mlp_dim

    def at(self, layer: int) -> MLPConfig:
        return SwiGLUConfig() if layer < self.dense_layers else self

    def build(self, trunk: Trunk) -> MoE:
        return MoE(self, trunk)

    def width(self, trunk: Trunk) -> int:
        """Width of an expert."""
        return self.expert_dim or trunk.hidden_dim // (self.top_k + self.shared)

    def check(self, trunk: Trunk) -> None:
        for key in ("experts", "top_k"):
            if getattr(self, key) < 1:
                raise ValueError(
                    f"model.mlp.{key}: {getattr(self, key)} is not positive; give 1 or more"
                )
        for key in ("shared", "dense_layers", "balance_rate"):
            if getattr(self, key) < 0:
                raise ValueError(
                    f"model.mlp.{key}: {getattr(self, key)} is negative; give 0 or more"
                )
        if self.top_k > self.experts:
            raise ValueError(
                f"model.mlp.top_k: {self.top_k} is more than model.mlp.experts = {self.experts}; "
                "change either"
            )
        if self.width(trunk) < 1:
            raise ValueError(
                f"model.mlp.expert_dim: {self.width(trunk)} is not positive; give a width"
            )


class MoE(Mixer):
    """sum over the token's experts of weight * SwiGLU_e(x), and the shared experts.

    The experts are the ``top_k`` of s + balance, with s = sigmoid(W x) in fp32; their weights are s
    alone, normalised. After an optimiser step the balance of an expert moves by ``balance_rate``,
    up where its load was below the mean.
    """

    kind = "mlp"
    balance: Tensor

    def __init__(self, c: MoEConfig, trunk: Trunk) -> None:
        super().__init__()
        self.c = c
        D, width = trunk.dim, c.width(trunk)
        self.norm = nn.RMSNorm(D, eps=trunk.norm_eps)
        self.router = nn.Linear(D, c.experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(c.experts, 2 * width, D))
        self.down = nn.Parameter(torch.empty(c.experts, D, width))
        self.shared_gate_up: nn.Linear | None = None
        self.shared_out: nn.Linear | None = None
        if c.shared:
            self.shared_gate_up = nn.Linear(D, 2 * c.shared * width, bias=False)
            self.shared_out = nn.Linear(c.shared * width, D, bias=False)
        self.register_buffer("balance", torch.zeros(c.experts))
        # tokens per expert since the last optimiser step, and in the one before; not buffers, since
        # data-parallel training copies those from rank 0 before every forward pass
        self.load: Tensor | None = None
        self.last_load: Tensor | None = None

    def init_weights(self, generator: torch.Generator, num_sublayers: int) -> None:
        super().init_weights(generator, num_sublayers)
        draw(self.gate_up, self.gate_up.shape[2], generator)
        draw(self.down, self.down.shape[2] * num_sublayers, generator)

    def linear_maps(self) -> dict[str, nn.Linear]:
        """Without the router, whose weights are used in fp32."""
        return {n: m for n, m in super().linear_maps().items() if n != "router"}

    def forward(self, x_BTD: Tensor, past: int = 0, state: State | None = None) -> Tensor:
        x_BTD = self.norm(x_BTD)
        x_ND = x_BTD.flatten(0, 1)
        chosen_NK, weights_NK = self.route(x_ND)
        load_E = torch.bincount(chosen_NK.flatten(), minlength=self.c.experts)
        if weights_NK.requires_grad:
            # in the backward pass, which runs once even where the forward pass is recomputed
            weights_NK.register_hook(lambda _: self._count(load_E))  # type: ignore[no-untyped-call]
        out_NKD = self._experts(x_ND, chosen_NK, load_E)
        out_ND = (out_NKD * weights_NK[..., None]).sum(1).to(out_NKD.dtype)
        if self.shared_gate_up is not None and self.shared_out is not None:
            out_ND = out_ND + self.shared_out(_glu(self.shared_gate_up(x_ND)))
        return out_ND.view_as(x_BTD)

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Experts of each token and their weights, both [N, K]."""
        with exact(x_ND):
            score_NE = F.linear(wide(x_ND), wide(self.router.weight)).sigmoid()
            chosen_NK = (score_NE + self.balance).topk(self.c.top_k, sorted=False).indices
            score_NK = score_NE.gather(1, chosen_NK)
            return chosen_NK, self.c.scale * score_NK / score_NK.sum(1, keepdim=True)

    def _experts(self, x_ND: Tensor, chosen_NK: Tensor, load_E: Tensor) -> Tensor:
        """Outputs [N, K, D] of the experts, a batch of tokens for each."""
        order = chosen_NK.flatten().argsort(stable=True)  # slots n * K + k, by expert
        batches: tuple[Tensor, ...] = torch.split(x_ND[order // self.c.top_k], load_E.tolist())
        weights = zip(self.gate_up.unbind(), self.down.unbind(), batches, strict=True)
        out = torch.cat([F.linear(_glu(F.linear(x, up)), down) for up, down, x in weights])
        return out[order.argsort()].view(*chosen_NK.shape, -1)

    def _count(self, load_E: Tensor) -> None:
        self.load = load_E if self.load is None else self.load + load_E

    @torch.no_grad()
    def after_step(self) -> None:
        if self.load is None:
            return
        if distributed.is_initialized():
            distributed.all_reduce(self.load, group=self.group)
        load_E = self.load.to(self.balance.dtype)
        if self.router.weight.requires_grad:  # a frozen router stays, whole
            self.balance += self.c.balance_rate * (load_E.mean() - load_E).sign()
        self.load, self.last_load = None, load_E

    def metrics(self) -> dict[str, float]:
        """``moe/load``: the largest load over the mean; ``moe/dead``: experts without a token."""
        if self.last_load is None:
            return {}
        return {
            "moe/load": float(self.last_load.max() / self.last_load.mean()),
            "moe/dead": float((self.last_load == 0).sum()),
        }

    def flops_per_token(self, seq_len: int) -> int:
        expert = self.gate_up[0].numel() + self.down[0].numel()
        active = self.c.top_k + self.c.shared
        return 2 * (self.router.weight.numel() + active * expert)

    def idle_params(self) -> int:
        expert = self.gate_up[0].numel() + self.down[0].numel()
        return (self.c.experts - self.c.top_k) * expert


def _glu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up
