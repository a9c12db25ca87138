"""FSDP over all processes, from a checkpoint of any layout."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's, which numbers the moments of a checkpoint by the module's parameters; they are
    numbered by the optimiser's groups.
    """

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        module = self.lightning_module
        assert module is not None
        checkpoint: dict[str, Any] = torch.load(
            checkpoint_path, map_location="cpu", weights_only=True
        )
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(module, checkpoint["state_dict"], options=options)
        states = checkpoint.get("optimizer_states", ())
        for optimizer, state in zip(self.optimizers, states, strict=False):
            named = _named(state, optimizer, module)
            set_optimizer_state_dict(module, optimizer, optim_state_dict=named, options=options)
        return checkpoint


def _named(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, module: nn.Module
) -> dict[str, Any]:
    """An optimiser's state by the names of the module's parameters."""
    names = {id(p): name for name, p in module.named_parameters()}
    order: list[Any] = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    saved = [key for group in state["param_groups"] for key in group["params"]]
    found = dict(zip(saved, order, strict=True))
    groups = [{**g, "params": [found[key] for key in g["params"]]} for g in state["param_groups"]]
    return {
        "state": {found[key]: value for key, value in state["state"].items()},
        "param_groups": groups,
    }
