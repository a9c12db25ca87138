"""Deep Delta Learning with one value per token (arXiv 2601.00417, the limit d_v = 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnres_lab.residual.base import Residual, ResidualConfig, Sublayer, exact

EPS = 1e-5  # added, squared, to the squared length of a direction
VALUE = 4.0  # largest value


@dataclass(frozen=True)
class DDLConfig(ResidualConfig):
    """No options."""

    name: str = "ddl"


class DDL(Residual):
    """h <- h + beta k (v - k . h): what h has along k is erased and v is written in its place.

    As in the authors' code: k is the sublayer's output at unit length, beta = 2 sigmoid(w_b .
    RMSNorm(h) + c_b), v = 4 sigmoid(w_v . h + c_v), one of each per sublayer. Choices: the weights
    start at zero, hence beta at 1 and v at 2; the norm has no gain (w_b would absorb it). The form
    with several values per token is not here.
    """

    Config = DDLConfig
    starts_as_baseline = False  # the length of what is written is beta (v - k . h), never |f(h)|

    def __init__(self, config: DDLConfig, num_sublayers: int, dim: int, norm_eps: float) -> None:
        super().__init__(config, num_sublayers, dim, norm_eps)
        self.gate = nn.Parameter(torch.zeros(num_sublayers, dim))
        self.gate_bias = nn.Parameter(torch.zeros(num_sublayers))
        self.value = nn.Parameter(torch.zeros(num_sublayers, dim))
        self.value_bias = nn.Parameter(torch.zeros(num_sublayers))

    def start(self, x_BTD: Tensor) -> Tensor:
        return x_BTD

    def step(self, state: Tensor, sublayer: Sublayer, index: int) -> Tensor:
        out_BTD = sublayer(state).to(state.dtype)
        with exact(state):
            k_BTD = out_BTD * (out_BTD.square().sum(-1, keepdim=True) + EPS**2).rsqrt()
            normed_BTD = F.rms_norm(state, state.shape[-1:], eps=self.norm_eps)
            at = slice(index, index + 1)
            beta_BT1 = 2 * F.linear(normed_BTD, self.gate[at], self.gate_bias[at]).sigmoid()
            v_BT1 = VALUE * F.linear(state, self.value[at], self.value_bias[at]).sigmoid()
            along_BT1 = (k_BTD * state).sum(-1, keepdim=True)
            h_BTD: Tensor = state + beta_BT1 * (v_BT1 - along_BT1) * k_BTD
        return h_BTD

    def finish(self, state: Tensor) -> Tensor:
        return state

    def flops_per_token(self) -> int:
        return 4 * self.dim * self.num_sublayers  # two maps to one number per sublayer
