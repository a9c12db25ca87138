"""What happens over depth in one training step: magnitudes, gradients, depth weights, updates.
Watched from outside through hooks.

    with Probe(model) as probe:
        loss(model).backward()
        optimizer.step()  # inside, where the update-to-weight ratio is wanted
    write_json(path, probe.record(step))

Shapes: S sources of a read, B batch, T time, D width, L sublayers. With several forward passes the
last one counts.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attnres_lab.model import Network

#: Weights per position are averaged over this many equal stretches of the sequence.
STRETCHES = 8
PER_SUBLAYER = ("input_rms", "output_rms", "gradient_norm", "update_ratio")


class _Read(NamedTuple):
    sources: tuple[str, ...]
    weights_S: Tensor
    weights_SK: Tensor  # in K stretches of the sequence
    entropy: Tensor
    effective_depth: Tensor


class Probe:
    """Measures within a ``with`` block; outside it the model has no hooks. The model is the plain
    module, not a compiled or sharded wrapper.
    """

    def __init__(self, model: Network) -> None:
        self.model = model
        self._values: dict[str, dict[int, Tensor]] = {key: {} for key in PER_SUBLAYER}
        self._reads: dict[int, _Read] = {}
        self._handles: list[RemovableHandle] = []
        self._before: list[list[Tensor]] = []
        self._record: dict[str, Any] = {}

    def __enter__(self) -> Probe:
        self.model.residual.observer = self._observe
        for index, sublayer in enumerate(self.model.sublayers):
            self._handles.append(sublayer.register_forward_hook(self._hook(index)))
            self._before.append([p.detach().clone() for p in sublayer.parameters()])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.model.residual.observer = None
        while self._handles:
            self._handles.pop().remove()
        for index, (sublayer, before) in enumerate(
            zip(self.model.sublayers, self._before, strict=True)
        ):
            change = _norm(
                [p.detach() - old for p, old in zip(sublayer.parameters(), before, strict=True)]
            )
            self._values["update_ratio"][index] = change / _norm(before)
        self._before = []

    def record(self, step: int) -> dict[str, Any]:
        """The measurements as plain JSON values (docs/design.md, "Depth records").

        Per sublayer: ``input_rms`` of the hidden state that enters, ``output_rms``,
        ``gradient_norm`` (L2, of the loss with respect to the output), ``update_ratio`` (L2 of the
        step's change over L2 of the weights); empty where there was no backward pass or no update.
        Per read, averaged over tokens: ``weights``; ``entropy`` in nats and ``effective_depth`` = 1
        / sum of squared weights, both of weights normalised to sum to 1; ``weights_by_position``
        [S][K], averaged over K equal stretches of the sequence.
        """
        lists = {key: _floats(values) for key, values in self._values.items()}
        if not any(lists["update_ratio"]):
            lists["update_ratio"] = []
        kinds = [*(m.kind for m in self.model.mixers()), "output"]
        reads = [
            {
                "sublayer": index,
                "kind": kinds[index],
                "sources": list(read.sources),
                "weights": read.weights_S.tolist(),
                "weights_by_position": read.weights_SK.tolist(),
                "entropy": read.entropy.item(),
                "effective_depth": read.effective_depth.item(),
            }
            for index, read in sorted(self._reads.items())
        ]
        self._record = {"step": step, "reads": reads, **lists}
        return self._record

    def metrics(self) -> dict[str, float]:
        """The last record as flat numbers: ``depth/output_rms/07`` is sublayer 7 (from 0),
        ``depth/entropy/16`` the output read of 16 sublayers.
        """
        flat = {
            f"depth/{key}/{index:02d}": value
            for key in PER_SUBLAYER
            for index, value in enumerate(self._record[key])
        }
        for key in ("entropy", "effective_depth"):
            flat |= {
                f"depth/{key}/{read['sublayer']:02d}": read[key] for read in self._record["reads"]
            }
        return flat

    def _hook(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out_BTD: Tensor) -> None:
            self._values["input_rms"][index] = _rms(args[0])
            self._values["output_rms"][index] = _rms(out_BTD)
            if out_BTD.requires_grad:
                out_BTD.register_hook(
                    lambda grad_BTD: self._values["gradient_norm"].update(
                        {index: _norm([grad_BTD])}
                    )
                )  # type: ignore[no-untyped-call]

        return hook

    def _observe(self, index: int, sources: tuple[str, ...], weights_SBT: Tensor) -> None:
        weights_SBT = weights_SBT.detach().float()
        share_SBT = weights_SBT / weights_SBT.sum(0)
        entropy = torch.special.entr(share_SBT).sum(0).mean()
        effective_depth = share_SBT.square().sum(0).reciprocal().mean()
        weights_ST = weights_SBT.mean(1)
        weights_SK = F.adaptive_avg_pool1d(
            weights_ST[:, None], min(STRETCHES, weights_ST.shape[1])
        )[:, 0]
        self._reads[index] = _Read(
            sources, weights_ST.mean(1), weights_SK, entropy, effective_depth
        )


def _rms(x: Tensor) -> Tensor:
    return x.detach().float().square().mean().sqrt()


def _norm(tensors: list[Tensor]) -> Tensor:
    return nn.utils.get_total_norm([t.detach().float() for t in tensors])


def _floats(values: dict[int, Tensor]) -> list[float]:
    return torch.stack([values[index] for index in sorted(values)]).tolist() if values else []
