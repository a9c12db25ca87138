"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from attnres_lab.config import OptimConfig
from attnres_lab.model import Network


class Muon(torch.optim.Muon):
    """Muon for stacks of matrices [E, m, n] too, such as those of experts, one by one; with
    ``rows`` in a group, each row of a matrix is one by itself, [1, n].
    """

    def __init__(self, group: dict[str, Any], lr: float) -> None:
        kinds = [[p for p in group["params"] if p.ndim == n] for n in (2, 3)]
        super().__init__([group | {"params": kinds[0]}], lr=lr, adjust_lr_fn="match_rms_adamw")
        if kinds[1]:  # not through the constructor of the base, which takes matrices only
            self.add_param_group(group | {"params": kinds[1]})

    def _init_group(self, *args: Any) -> bool:
        complex_: bool = super()._init_group(*args)
        rows = args[0].get("rows")
        for tensors in args[1:]:  # parameters, gradients, momenta; views, so that updates go home
            stacks = [t.unsqueeze(1) if rows else t for t in tensors]
            tensors[:] = [m for t in stacks for m in (t.unbind() if t.ndim == 3 else (t,))]
        return complex_


def lr_factor(c: OptimConfig, progress: float) -> float:
    """Learning rate relative to ``lr`` at ``progress`` in [0, 1] of the training."""
    if progress < c.warmup:
        return max(progress / c.warmup, 1e-3)
    if c.schedule == "cosine":
        x = (progress - c.warmup) / max(1 - c.warmup, 1e-12)
        return c.final_lr + (1 - c.final_lr) * 0.5 * (1 + math.cos(math.pi * min(x, 1.0)))
    if progress < 1 - c.decay:
        return 1.0
    return 1 - (1 - c.final_lr) * min((progress - (1 - c.decay)) / max(c.decay, 1e-12), 1.0)


def parameter_groups(model: Network) -> dict[str, list[nn.Parameter]]:
    """Parameters by kind: ``matrix`` (the trunk's, with weight decay), ``undecayed`` (gains,
    embedding and head, without) and ``residual``.
    """
    residual = list(model.residual.parameters())
    known = {id(p) for p in residual}
    matrix = [p for p in model.sublayers.parameters() if p.ndim >= 2]
    known |= {id(p) for p in matrix}
    undecayed = [p for p in model.parameters() if id(p) not in known]
    return {"matrix": matrix, "undecayed": undecayed, "residual": residual}


class Together(torch.optim.Optimizer):
    """Several optimisers as one, so that Lightning's automatic optimisation, which takes one,
    serves them: their groups in a row, one state, a step of each.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts work on this optimiser's groups and state; loading a checkpoint makes new
        ones.
        """
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure else None
        for part in self.parts:
            part.step()
        return loss


def pseudo_queries(model: Network) -> list[nn.Parameter]:
    """The pseudo-queries, [reads, D] each."""
    named = model.residual.named_parameters()
    return [p for name, p in named if name.rpartition(".")[2] == "pseudo_query"]


def make_optimizer(model: Network, c: OptimConfig) -> torch.optim.Optimizer:
    """AdamW; or Muon for the trunk's matrices or the pseudo-queries and AdamW for the rest, as
    one.
    """
    groups = parameter_groups(model)
    for parameter in (*groups["matrix"], *groups["undecayed"]) if c.freeze_trunk else ():
        parameter.requires_grad_(False)
    matrix = {"params": groups["matrix"], "weight_decay": c.weight_decay, "lr": c.lr}
    plain = [{"params": groups["undecayed"], "weight_decay": 0.0, "lr": c.lr}]
    # apart from the rest only if they are treated so: older checkpoints have no such group
    apart = pseudo_queries(model) if c.query_weight_decay or c.query_optimizer == "muon" else []
    lr, ids = c.lr * c.residual_lr_mult, {id(p) for p in apart}
    if rest := [p for p in groups["residual"] if id(p) not in ids]:
        plain.append({"params": rest, "weight_decay": 0.0, "lr": lr})
    query = {"params": apart, "weight_decay": c.query_weight_decay, "lr": lr}
    parts: list[torch.optim.Optimizer] = []
    if apart and c.query_optimizer == "muon":
        parts = [Muon(query | {"rows": True}, lr)]
    elif apart:
        plain.append(query)
    if c.name == "muon":
        parts = [Muon(matrix, c.lr), *parts]
    else:
        plain = [matrix, *plain]
    adamw = torch.optim.AdamW(plain, lr=c.lr, betas=c.betas, fused=True)
    # the trunk's groups first: the rate of the first is the one that rows tell
    order = [*parts, adamw] if c.name == "muon" else [adamw, *parts]
    optimizer = Together(*order) if parts else adamw
    if not c.query_master:
        optimizer.register_step_post_hook(lambda *_: round_to_bf16(pseudo_queries(model)))
    return optimizer


@torch.no_grad()
def round_to_bf16(parameters: Iterable[nn.Parameter]) -> None:
    """What is left of the values without an fp32 master copy, in place."""
    for parameter in parameters:
        parameter.copy_(parameter.bfloat16())


def clip_gradients(model: Network, clip: float, residual_clip: float | None) -> Tensor:
    """Clip the gradients by their global norm (0: not at all), the residual connection's by
    themselves where they have a limit of their own. Returns the global norm of before.
    """
    if residual_clip is None:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
    residual = list(model.residual.parameters())
    own = {id(p) for p in residual}
    trunk = [p for p in model.parameters() if id(p) not in own]
    norms = [
        torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf)
        for parameters, limit in ((trunk, clip), (residual, residual_clip))
        if parameters
    ]
    total: Tensor = torch.stack(norms).norm()
    return total
