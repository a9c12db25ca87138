"""A run over the stages of a pipeline: the module and the strategy that ``train.strategy:
pipeline`` trains with.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from attnres_lab.config import RunConfig
from attnres_lab.errors import UserError
from attnres_lab.model import Transformer
from attnres_lab.pipeline.run import Groups, Pipeline
from attnres_lab.training.module import LitTransformer
from attnres_lab.training.probe import Probe


class PipelineStrategy(DDPStrategy):
    """The processes of DDP without its wrapper: a ``LitPipeline`` adds up gradients itself."""

    def configure_ddp(self) -> None:
        """Leave the module as it is."""

    def setup(self, trainer: pl.Trainer) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            return super().setup(trainer)
        # the base would copy the first rank's weights to all
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model_to_device()
        self.setup_precision_plugin()


class LitPipeline(LitTransformer):
    """The stages of this process of ``config.train.pipeline``, under a ``PipelineStrategy``. Its
    checkpoints are those of one process, and load in any layout.

    A step's loss is the mean over its micro-batches, and its backward pass is part of it.
    """

    model: Transformer
    pipeline: Pipeline

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._optimizer: torch.optim.Optimizer | None = None
        self._names: list[list[str]] = []  # of the whole network's parameters, by optimiser group

    def configure_model(self) -> None:
        """Cut the network. The optimiser is the whole network's, less what is elsewhere."""
        if self._optimizer is not None:
            return
        self._optimizer = super().make_optimizer()
        groups = self._optimizer.param_groups
        names = {id(p): name for name, p in self.model.named_parameters()}
        self._names = [[names[id(p)] for p in group["params"]] for group in groups]
        ranks = self.trainer.world_size // self.config.train.replicas
        try:
            self.pipeline = Pipeline(self.model, self.config.train.pipeline, Groups.make(ranks))
        except NotImplementedError as error:
            raise UserError(f"train.strategy: {error}") from error
        own = {id(p) for p in self.model.parameters()}
        self._local = [
            [n for p, n in zip(g["params"], named, strict=True) if id(p) in own]
            for g, named in zip(groups, self._names, strict=True)
        ]
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) in own]

    def make_optimizer(self) -> torch.optim.Optimizer:
        assert self._optimizer is not None
        return self._optimizer

    def loss(self, batch: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token; leaves its gradients behind."""
        self.model.zero_grad()
        return self.pipeline.step(
            batch[:, :-1], batch, lambda logits, tokens: self.task.loss(lambda _: logits, tokens)
        )

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Done."""

    def optimizer_zero_grad(self, *args: Any) -> None:
        """Done before the step."""

    def clip(self, clip: float) -> Tensor:
        return self.pipeline.clip(clip, self.config.optim.residual_clip)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        logits = self.pipeline.forward(batch[:, :-1])
        if logits is not None:
            self.add_scores(batch_idx, *self.task.score(lambda _: logits, batch))

    def probe(self) -> Probe:
        return StageProbe(self.model, self.pipeline)

    def network_metrics(self) -> dict[str, float]:
        return self.pipeline.gather(super().network_metrics())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] = self.pipeline.gather(checkpoint["state_dict"])
        for part in checkpoint.get("optimizer_states", ()):
            local = [name for names in self._local for name in names]
            state = self.pipeline.gather({local[i]: value for i, value in part["state"].items()})
            whole = [name for names in self._names for name in names]
            part["state"] = {i: state[name] for i, name in enumerate(whole) if name in state}
            _number(part["param_groups"], self._names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        own = self.state_dict().keys()
        checkpoint["state_dict"] = {n: x for n, x in checkpoint["state_dict"].items() if n in own}
        for part in checkpoint.get("optimizer_states", ()):
            whole = [name for names in self._names for name in names]
            saved = [key for group in part["param_groups"] for key in group["params"]]
            place = dict(zip(saved, whole, strict=True))  # FSDP's keys are names
            state = {place[key]: value for key, value in part["state"].items()}
            local = [name for names in self._local for name in names]
            part["state"] = {i: state[name] for i, name in enumerate(local) if name in state}
            _number(part["param_groups"], self._local)


def _number(groups: list[dict[str, Any]], names: list[list[str]]) -> None:
    """Number the parameters of an optimiser's saved groups through."""
    first = 0
    for group, named in zip(groups, names, strict=True):
        group["params"] = list(range(first, first + len(named)))
        first += len(named)


class StageProbe(Probe):
    """Each process measures its own sublayers and reads; the first has them all at the end of the
    ``with`` block, which every process leaves at the same step.
    """

    def __init__(self, model: Transformer, pipeline: Pipeline) -> None:
        super().__init__(model)
        self.pipeline = pipeline

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is not None:
            return
        ratios = self._values["update_ratio"]
        self._values["update_ratio"] = {i: ratios[i] for i in self._values["output_rms"]}
        self._values = {key: self.pipeline.gather(v) for key, v in self._values.items()}
        self._reads = self.pipeline.gather(self._reads)
