"""Pipelines of gloo processes against one process, in float64; run by the tests, in processes that
serve many cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.pipeline import PipelineConfig
from attnres_lab.pipeline.run import Groups, Pipeline
from attnres_lab.training.pipeline import StageProbe
from attnres_lab.training.probe import Probe

B, T, VOCAB, STEPS = 8, 6, 13, 12


def model(config: ModelConfig) -> Transformer:
    """In float64, its residual parameters off their start."""
    network, generator = Transformer(config, seed=1).double(), torch.Generator().manual_seed(2)
    for p in network.residual.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return network


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    tokens = torch.randint(VOCAB, (B, T + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def criterion(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def optimiser(network: Transformer) -> torch.optim.Optimizer:
    # a large eps: Adam makes steps of what is only rounding where a gradient is almost zero
    return torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.1, eps=1e-3)


@dataclass
class Outcome:
    losses: list[float]
    norms: list[float]
    gradients: dict[str, Tensor]  # of the first step, before clipping
    weights: dict[str, Tensor]  # after the last
    logits: Tensor | None = None
    depth: dict[str, Any] | None = None  # the depth record of the first step


def named_gradients(network: Transformer) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def one_process(config: ModelConfig, steps: int = STEPS, clip: float = 0.5) -> Outcome:
    network = model(config)
    out = Outcome([], [], {}, {})
    optimizer = optimiser(network)
    with torch.no_grad():
        out.logits = network(batch(99)[0][:3])
    for step in range(steps):
        optimizer.zero_grad()
        inputs, targets = batch(step)
        loss = criterion(network(inputs), targets)
        loss.backward()
        out.losses.append(loss.item())
        out.gradients = out.gradients or named_gradients(network)
        out.norms.append(float(torch.nn.utils.clip_grad_norm_(network.parameters(), clip)))
        optimizer.step()
        network.after_step()
    out.weights = {n: v.clone() for n, v in network.state_dict().items()}
    return out


def one_record(
    config: ModelConfig, microbatches: int, clip: float = 0.5, *, backwards: bool = False
) -> dict[str, Any]:
    """The depth record of the first step, in one process that takes the micro-batches in turn, or
    from the last to the first.
    """
    network = model(config)
    optimizer, (inputs, targets) = optimiser(network), batch(0)
    with Probe(network) as probe:
        parts = list(zip(inputs.chunk(microbatches), targets.chunk(microbatches), strict=True))
        for part in reversed(parts) if backwards else parts:
            (criterion(network(part[0]), part[1]) / microbatches).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
    return probe.record(0)


@dataclass
class Piped(Outcome):
    bytes: dict[str, int] | None = None  # sent by all stages in the first step, by direction


def pipelined(
    config: ModelConfig, pipeline: PipelineConfig, steps: int = STEPS, clip: float = 0.5
) -> Piped:
    """On the processes of this group; whole at the first, and bytes of the first pipeline."""
    network = model(config)
    world, me = distributed.get_world_size(), distributed.get_rank()
    groups = Groups.make(pipeline.ranks or world)
    pipe = Pipeline(network, pipeline, groups)
    out = Piped([], [], {}, {})
    optimizer = optimiser(network)
    logits = pipe.forward(batch(99)[0][:3])
    share = slice(me // len(groups.ranks), None, world // len(groups.ranks))
    for step in range(steps):
        optimizer.zero_grad()
        inputs, targets = batch(step)
        probe = StageProbe(network, pipe)
        if step == 0:
            probe.__enter__()
        loss = pipe.step(inputs[share], targets[share], criterion)
        distributed.all_reduce(loss)
        out.losses.append(float(loss) / world)
        if step == 0:
            out.gradients = pipe.gather(named_gradients(network))
            sent = {w: sum(s.sent_bytes[w] for s in pipe.stages) for w in ("forward", "backward")}
            every: list[Any] = [None] * len(groups.ranks)
            distributed.all_gather_object(every, sent, groups.pipeline)
            out.bytes = {w: sum(one[w] for one in every) for w in sent}
        out.norms.append(float(pipe.clip(clip, None)))
        optimizer.step()
        if step == 0:
            probe.__exit__(None, None, None)
            out.depth = probe.record(0)
        network.after_step()
    out.weights = pipe.gather(network.state_dict())
    out.logits = pipe.gather({"logits": logits} if logits is not None else {}).get("logits")
    return out
