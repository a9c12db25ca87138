"""Activation checkpointing keeps the sources of depth attention and nothing beside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.residual import REGISTRY, ResidualConfig

B, T, D, LAYERS = 2, 64, 32, 6
FULL, BLOCK, RMS = (REGISTRY[name].Config for name in ("full", "block", "rmsblock"))


class Storages(TorchDispatchMode):
    """Every tensor's storage that an operator made, held weakly."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.seen.append((StorageWeakRef(storage), storage.nbytes()))
        return out

    def alive(self, but: Iterable[Tensor]) -> int:
        """Bytes that are still held, beside those of the tensors ``but`` and views of them."""
        held = {ref.cdata: size for ref, size in self.seen if not ref.expired()}
        for tensor in but:
            held.pop(StorageWeakRef(tensor.untyped_storage()).cdata, None)
        return sum(held.values())


def model(residual: ResidualConfig, checkpointing: bool) -> Transformer:
    config = ModelConfig(
        vocab_size=16,
        dim=D,
        num_layers=LAYERS,
        num_heads=2,
        residual=residual,
        activation_checkpointing=checkpointing,
    )
    made = Transformer(config, seed=0).double().train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # queries that choose
        for parameter in made.residual.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).double()
    return made


def streams_kept(residual: ResidualConfig, checkpointing: bool) -> float:
    """What the forward pass of a training step leaves for the backward pass, in units of one hidden
    state [B, T, D].
    """
    transformer = model(residual, checkpointing)
    tokens = torch.randint(16, (B, T), generator=torch.Generator().manual_seed(2))
    with Storages() as storages:
        loss = transformer(tokens).square().mean()
        kept = storages.alive(but=transformer.parameters())
    loss.backward()
    return kept / (B * T * D * 8)


def test_full_keeps_its_sources_and_no_input_of_a_sublayer() -> None:
    """The embedding and 2 x 6 outputs; beside them what follows the last read (itself, its norm,
    its square) and small things.
    """
    sublayers = 2 * LAYERS
    kept = streams_kept(FULL(), checkpointing=True)
    assert sublayers + 1 <= kept <= sublayers + 1 + 5
    assert streams_kept(FULL(), checkpointing=False) > 4 * kept


@pytest.mark.parametrize("residual", [FULL(), FULL(heads=2), FULL(window=3), BLOCK(num_blocks=3)])
def test_checkpointing_keeps_no_more_than_in_the_baseline_and_the_gradients(
    residual: ResidualConfig,
) -> None:
    """The baseline keeps the input of every sublayer: as many streams as Full has sources."""
    baseline = streams_kept(REGISTRY["baseline"].Config(), checkpointing=True)
    assert streams_kept(residual, checkpointing=True) <= baseline + 3
    tokens = torch.randint(16, (B, T), generator=torch.Generator().manual_seed(2))
    gradients = []
    for checkpointing in (False, True):
        made = model(residual, checkpointing)
        loss = made(tokens).square().mean()
        gradients.append(torch.autograd.grad(loss, list(made.parameters())))
    for ours, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, ours, rtol=1e-11, atol=1e-14)


def test_a_sublayer_is_run_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own checkpoint inside that of the read would run it three times."""
    for residual in (FULL(), BLOCK(num_blocks=3), RMS(num_blocks=3)):
        made, calls = model(residual, checkpointing=True), []
        made.sublayers[3].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        made(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
        assert len(calls) == 2
