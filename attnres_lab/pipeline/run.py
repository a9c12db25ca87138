"""The pipeline of one process: its stages, one training step, a forward pass, and the sums over
processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class

from attnres_lab.model import ModelConfig, Network, Transformer
from attnres_lab.pipeline.config import PipelineConfig
from attnres_lab.pipeline.layout import Layout, traffic
from attnres_lab.pipeline.stage import Ledger, Named, Part, Stage
from attnres_lab.residual import Residual

#: Logits and targets of a microbatch to its mean loss.
Criterion = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Groups:
    """Process groups of one process: its pipeline, the processes with the same stages in all
    pipelines, and the two ends of its pipeline (None in between). Rank r is place r mod ``ranks``
    of pipeline r // ``ranks``.
    """

    pipeline: Any
    replicas: Any
    ends: Any
    ranks: list[int]  # of the pipeline

    @classmethod
    def make(cls, ranks: int) -> Groups:
        """Collective: every process makes all groups, in one order."""
        world, me = distributed.get_world_size(), distributed.get_rank()
        lines = [list(range(first, first + ranks)) for first in range(0, world, ranks)]
        columns = [list(range(place, world, ranks)) for place in range(ranks)]
        found: dict[str, Any] = {"ends": None}
        for name, members in (
            *(("pipeline", line) for line in lines),
            *(("replicas", column) for column in columns),
            *(("ends", [line[0], line[-1]]) for line in lines),
        ):
            group = distributed.new_group(members)
            if me in members:
                found[name] = group
        return cls(**found, ranks=lines[me // ranks])


class Elsewhere(nn.Module):
    """Stands where a sublayer of another process is."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def after_step(self) -> None:
        """Nothing to do."""

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}


def crossing(residual: Residual, c: ModelConfig, x_BTD: Tensor, cuts: Sequence[int]) -> list[Named]:
    """What crosses each cut of what enters as ``x_BTD``, as the residual connection makes it around
    sublayers that return their input.
    """
    values = (len(x_BTD), c.kv_heads, x_BTD.shape[1], c.dim // c.num_heads)

    def sublayer(x: Tensor, **options: Any) -> Tensor:
        if "values" in options:
            options["values"](x.new_empty(values))
        return x.clone()

    observer, residual.observer = residual.observer, None
    found: list[Named] = []
    with torch.no_grad():
        state = residual.start(x_BTD)
        for index in range(max(cuts)):
            state = residual.step(state, sublayer, index)
            if index + 1 in cuts:
                found.append(residual.carry(state, index + 1))
    residual.observer = observer
    return found


def shapes(network: Network, batch: tuple[int, ...], cuts: Sequence[int]) -> list[Named]:
    """Of a batch of tokens [B, T], what crosses each cut of a network, on the meta device."""
    like, c = next(network.parameters()), network.config
    with FakeTensorMode(allow_non_fake_inputs=True):  # without their memory
        x_BTD = torch.empty((*batch, c.dim), dtype=like.dtype, device=like.device)
        named = crossing(network.residual, c, x_BTD, cuts)
    return [{n: _meta(x.shape, x.dtype) for n, x in tensors.items()} for tensors in named]


def _meta(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    gradient = dtype.is_floating_point
    return torch.empty(tuple(shape), dtype=dtype, device="meta", requires_grad=gradient)


class Pipeline:
    """Cuts ``network``, in place, to the stages of this process, which keeps the whole residual
    connection, and a tied embedding at both ends.
    """

    def __init__(self, network: Transformer, config: PipelineConfig, groups: Groups) -> None:
        self.network, self.config, self.groups = network, config, groups
        ranks = len(groups.ranks)
        self.layout = Layout(ranks, config.virtual_stages, network.config.num_sublayers)
        self.place = distributed.get_rank(groups.pipeline)
        self.count = config.count(ranks)
        network.residual.apart = True
        self._shapes: dict[tuple[int, ...], list[Named]] = {}
        names = [list(named) for named in self.shapes((1, 2))]
        self.traffic = traffic(self.layout, names, config.caching)
        self._cut()
        self.parts = [
            Part(network, self.layout, stage, self.traffic) for stage in self.layout.of(self.place)
        ]
        self.first, self.last = self.parts[0].first, self.parts[-1].last
        self.ledger, self.stages = Ledger(), list[Stage]()
        self._schedule: Any = None
        self._batch: tuple[int, ...] = ()

    def shapes(self, batch: tuple[int, ...]) -> list[Named]:
        """``shapes`` of the network, found once for every size of a batch: it takes a forward pass
        of the residual connection.
        """
        if batch not in self._shapes:
            self._shapes[batch] = shapes(self.network, batch, self.layout.cuts)
        return self._shapes[batch]

    def _cut(self) -> None:
        network, place = self.network, self.place
        own = {i for stage in self.layout.of(place) for i in self.layout.span(stage)}
        for index, sublayer in enumerate(network.mixers()):
            if index in own:
                sublayer.group = self.groups.replicas
            else:
                network.sublayers[index] = Elsewhere(sublayer.kind)
        first, last = place == 0, place == self.layout.ranks - 1
        tied = network.config.tie_embeddings and (first or last)
        for name, here in {"embed": first or tied, "norm": last, "head": last or tied}.items():
            if not here:
                setattr(network, name, Elsewhere(name))

    def step(self, inputs: Tensor, targets: Tensor, criterion: Criterion) -> Tensor:
        """The mean loss of a batch, tokens [B, T], whose gradients are then in ``grad``; every
        process of the pipeline calls it with the same batch.
        """
        schedule = self._prepared((len(inputs) // self.count, *inputs.shape[1:]), criterion)
        losses: list[Tensor] = []
        schedule.step(
            *((inputs,) if self.first else ()),
            target=targets if self.last else None,
            losses=losses if self.last else None,
            return_outputs=False,
        )
        self.ledger.check_empty()
        self.reduce_gradients()
        return self._from_the_end(torch.stack(losses).detach().sum() if losses else None)

    def _from_the_end(self, value: Tensor | None) -> Tensor:
        """A number that the last process of the pipeline has."""
        like = next(self.network.parameters())
        value = like.new_zeros((), dtype=torch.float64) if value is None else value.double()
        distributed.broadcast(value, self.groups.ranks[-1], self.groups.pipeline)
        return value

    def _prepared(self, batch: tuple[int, ...], criterion: Criterion) -> Any:
        """The schedule for microbatches [B, T]."""
        if batch != self._batch:
            self._batch, self.stages = batch, self._stages(batch)
            kind: Any = get_schedule_class(self.config.schedule)
            single = issubclass(kind, PipelineScheduleSingle)
            self._schedule = kind(
                self.stages[0] if single else self.stages,
                self.count,
                # the loss is divided, not the gradients: the stages of a rank share parameters
                loss_fn=lambda logits, targets: criterion(logits, targets) / self.count,
                scale_grads=False,
            )
        return self._schedule

    def _stages(self, batch: tuple[int, ...]) -> list[Stage]:
        named, c = self.shapes(batch), self.network.config
        dtype = next(self.network.parameters()).dtype
        stages = []
        for part in self.parts:
            inputs = [_meta(batch, torch.long)]
            outputs = [_meta((*batch, c.vocab_size), dtype)]
            if not part.first:
                inputs = [named[part.stage - 1][name] for name in part.received]
            if not part.last:
                outputs = [named[part.stage][name] for name in part.sends]
            hops = (tuple(inputs), tuple(outputs), self.groups.pipeline)
            stages.append(Stage(part, self.layout, self.ledger, hops))
        return stages

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor | None:
        """Logits [B, T, V] of tokens [B, T] at the last process, None elsewhere. A batch of any
        size; stages work one after another.
        """
        templates, values = self.shapes(tuple(inputs.shape)), Named()
        ranks, place = self.groups.ranks, self.place
        for part in self.parts:
            received = [inputs]
            if not part.first:
                named = templates[part.stage - 1]
                received = [
                    torch.empty_like(named[name], device=inputs.device) for name in part.received
                ]
                for x in received:
                    distributed.recv(x, ranks[place - 1], self.groups.pipeline)
            part.held = {name: values[name] for name in part.reads}
            out = part(*received)
            part.held = {}
            if isinstance(out, Tensor):
                return out
            values |= dict(zip(part.received, received, strict=True)) if not part.first else {}
            values |= dict(zip(part.sends, out, strict=True))
            for x in out:
                distributed.send(x, ranks[(place + 1) % len(ranks)], self.groups.pipeline)
        return None

    def reduce_gradients(self) -> None:
        """Of the residual connection over the pipeline, of a tied embedding over its ends, and the
        mean of all over the pipelines.
        """
        network, groups = self.network, self.groups
        residual = list(network.residual.parameters())
        for parameter in residual:
            if parameter.grad is None:  # no stage of this rank uses it
                parameter.grad = torch.zeros_like(parameter)
        _add_up(residual, groups.pipeline)
        if network.config.tie_embeddings and groups.ends is not None:
            _add_up([network.embed.weight], groups.ends)
        if (pipelines := distributed.get_world_size(groups.replicas)) > 1:
            _add_up(network.parameters(), groups.replicas, pipelines)

    def clip(self, clip: float, residual_clip: float | None) -> Tensor:
        """Clip the gradients by their norm over all stages, as ``training.optim.clip_gradients``
        does in one process. Returns the norm of before.
        """
        network = self.network
        residual = list(network.residual.parameters())
        shared = {id(p) for p in residual}
        trunk = [p for p in network.parameters() if id(p) not in shared]
        twice = network.embed.weight if network.config.tie_embeddings and self.last else None
        square = _norm(p for p in trunk if p is not twice) ** 2
        distributed.all_reduce(square, group=self.groups.pipeline)
        own = _norm(residual).to(square)
        total = (square + own**2).sqrt()
        if residual_clip is None:
            nn.utils.clip_grads_with_norm_(network.parameters(), clip or math.inf, total)
        else:
            nn.utils.clip_grads_with_norm_(trunk, clip or math.inf, square.sqrt())
            nn.utils.clip_grads_with_norm_(residual, residual_clip or math.inf, own)
        return total

    def gather(self, named: dict[Any, Any]) -> dict[Any, Any]:
        """The entries of all processes of the pipeline as one, at its first process; nothing
        elsewhere.
        """
        parts: list[Any] | None = [None] * len(self.groups.ranks) if self.place == 0 else None
        distributed.gather_object(named, parts, self.groups.ranks[0], self.groups.pipeline)
        return {name: value for part in parts or [] for name, value in part.items()}


def _norm(parameters: Iterable[Tensor]) -> Tensor:
    found = [p.grad for p in parameters if p.grad is not None]
    total: Tensor = nn.utils.get_total_norm(found)
    return total.to(found[0].device) if found else total


def _add_up(parameters: Iterable[Tensor], group: Any, divisor: int = 1) -> None:
    """Replace gradients by their sum over a group, divided."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat, group=group)
    sizes = [g.numel() for g in gradients]
    for gradient, part in zip(gradients, torch.split(flat, sizes), strict=True):
        gradient.copy_(part.view_as(gradient) / divisor)
