"""A stage of the pipeline: the part of the network it runs, and what its rank keeps between its
stages.

Backward, a tensor that several stages of a rank read has several gradients. The stage where it
first was on this rank, made or received, runs backward last: the later ones deposit theirs, and it
adds them to its own before it sends them on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.pipelining import PipelineStage

from attnres_lab.model import Transformer
from attnres_lab.pipeline.layout import Layout, Traffic

Named = dict[str, Tensor]


@dataclass
class Ledger:
    """Of one rank, by microbatch: the values that its later stages will read, and the gradients
    that its earlier stages have still to add.
    """

    values: dict[int, Named] = field(default_factory=dict)
    deposits: dict[int, Named] = field(default_factory=dict)

    def deposit(self, chunk: int, name: str, gradient: Tensor) -> None:
        """Add a gradient. Out of place: autograd lets gradients of several leaves share memory."""
        named = self.deposits.setdefault(chunk, {})
        named[name] = named[name] + gradient if name in named else gradient

    def withdraw(self, chunk: int, name: str) -> Tensor | None:
        """What has been deposited for a name."""
        return self.deposits.get(chunk, {}).pop(name, None)

    def check_empty(self) -> None:
        """Raises RuntimeError where a step has left anything behind."""
        left = sorted({n for d in (self.values, self.deposits) for v in d.values() for n in v})
        if left:
            raise RuntimeError(f"the pipeline's step left {', '.join(left)} behind")
        self.deposits.clear()


class Part(nn.Module):
    """The sublayers of one stage, with the embedding before the first and the head behind the last.
    Takes tokens [B, T] or the received tensors; returns logits [B, T, V] or what it sends.
    """

    def __init__(
        self, network: Transformer, layout: Layout, stage: int, stages: list[Traffic]
    ) -> None:
        super().__init__()
        self.network, self.stage, self.span = network, stage, layout.span(stage)
        self.first, self.last = stage == 0, stage == layout.stages - 1
        self.received, self.reads = stages[stage].received, stages[stage].held
        self.sends = () if self.last else stages[stage + 1].received
        later = layout.of(stage % layout.ranks)
        self.closes = stage == later[-1]
        self.kept = {n for s in later if s > stage for n in stages[s].held}
        self.held: Named = {}  # values of ``reads`` for the microbatch under way

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        network, residual = self.network, self.network.residual
        if self.first:
            state = residual.start(network.enter(inputs[0]))
        else:
            named = self.held | dict(zip(self.received, inputs, strict=True))
            state = residual.resume(named, self.span.start)
        for index in self.span:
            state = residual.step(state, network.sublayer(index), index)
        if self.last:
            return network.leave(residual.finish(state))
        carried = residual.carry(state, self.span.stop)
        return tuple(_own(carried[name], inputs) for name in self.sends)


def _own(x: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
    """What is passed on is no input of the stage, whose buffer the next step fills anew."""
    if any(x is given for given in inputs) or not x.is_contiguous():
        return x.clone(memory_format=torch.contiguous_format)
    return x


class Stage(PipelineStage):
    """A stage that takes from its rank's ledger what the hop did not bring, and counts what it
    sends.
    """

    def __init__(
        self, part: Part, layout: Layout, ledger: Ledger, hops: tuple[Any, Any, Any]
    ) -> None:
        inputs, outputs, group = hops
        device = next(part.parameters()).device
        super().__init__(part, part.stage, layout.stages, device, inputs, outputs, group=group)
        self.part, self.ledger = part, ledger
        self.leaves: dict[int, Named] = {}
        self.sent_bytes = {"forward": 0, "backward": 0}

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        part, values = self.part, self.ledger.values.setdefault(fwd_chunk_id, {})
        part.held = {name: values[name].detach().requires_grad_() for name in part.reads}
        self.leaves[fwd_chunk_id] = part.held
        output = super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        part.held = {}
        received = () if part.first else self.args_recv_info[fwd_chunk_id]
        arrived = dict(zip(part.received, (info.buffer for info in received), strict=True))
        made = {} if part.last else dict(zip(part.sends, output, strict=True))
        values |= {n: x.detach() for n, x in (made | arrived).items() if n in part.kept}
        if part.closes:
            del self.ledger.values[fwd_chunk_id]
        return output

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        part, ledger = self.part, self.ledger
        gradients = () if part.last else self.grad_recv_info[bwd_chunk_id]
        for name, info in zip(part.sends, gradients, strict=True):
            if name not in part.received:
                later = ledger.withdraw(bwd_chunk_id, name)
                if later is not None:
                    info.buffer.add_(later)
        super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)
        if not part.first:
            own = zip(part.received, self.bwd_cache[bwd_chunk_id], strict=True)
            self.bwd_cache[bwd_chunk_id] = tuple(
                _sum(gradient, ledger.withdraw(bwd_chunk_id, name)) for name, gradient in own
            )
        for name, leaf in self.leaves.pop(bwd_chunk_id).items():
            if leaf.grad is not None:
                ledger.deposit(bwd_chunk_id, name, leaf.grad)

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[distributed.P2POp]:
        return self._counted("forward", super().get_fwd_send_ops(fwd_chunk_id))

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[distributed.P2POp]:
        return self._counted("backward", super().get_bwd_send_ops(bwd_chunk_id))

    def _counted(self, way: str, ops: list[distributed.P2POp]) -> list[distributed.P2POp]:
        self.sent_bytes[way] += sum(op.tensor.nbytes for op in ops)
        return ops


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b
