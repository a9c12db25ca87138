"""Every variant's stated FLOPs are those that torch counts in its matrix products."""

import pytest
import torch
from cases import CASES, PARTITIONS
from conformance import stand_in
from torch.utils.flop_counter import FlopCounterMode

from attnres_lab import ops
from attnres_lab.ops import naive
from attnres_lab.residual import REGISTRY, hyper

B, T, D, L = 2, 3, 16, 12


@pytest.mark.parametrize("config", [*CASES, *PARTITIONS], ids=lambda config: config.label)
def test_flops_per_token(monkeypatch, config):
    """Through the definition of depth attention, in bf16, which no schedule of the CPU takes; and
    with reads of streams as the products that they are.
    """
    monkeypatch.setattr(ops, "depth_attention", naive.depth_attention)
    monkeypatch.setattr(hyper, "_weighted_sum", lambda w, h: torch.bmm(w[:, None], h)[:, 0])
    residual = REGISTRY[config.name](config, L, D, 1e-6).bfloat16()
    with FlopCounterMode(display=False) as counter:
        state = residual.start(torch.randn(B, T, D, dtype=torch.bfloat16))
        for index in range(L):
            state = residual.step(state, stand_in, index)
        residual.finish(state)
    assert counter.get_total_flops() == B * T * residual.flops_per_token()
