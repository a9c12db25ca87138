"""What residual connections cost under a pipeline: interleaved training steps (forward, backward
and the sums of gradients) on processes of this machine.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.pipeline import PipelineConfig
from attnres_lab.pipeline.run import Groups, Pipeline
from attnres_lab.residual.attnres import BlockConfig, FullConfig
from attnres_lab.residual.baseline import BaselineConfig

#: Name to variant and whether ranks keep what they hold; ratios refer to the first.
ARMS = {
    "baseline": (BaselineConfig(), True),
    "block8": (BlockConfig(), True),
    "block8 uncached": (BlockConfig(), False),
    "full": (FullConfig(), True),
    "full uncached": (FullConfig(), False),
}


@dataclass(frozen=True)
class Case:
    """Sizes of the model, of a step, and of the measurement."""

    dim: int = 256
    layers: int = 8
    batch: int = 8
    seq_len: int = 128
    ranks: int = 2
    virtual: int = 2
    microbatches: int = 4
    repeats: int = 20
    device: str = "cpu"

    def pipeline(self, caching: bool) -> PipelineConfig:
        """Raises ValueError, as ``check`` does, for what cannot be laid out."""
        schedule = "Interleaved1F1B" if self.virtual > 1 else "1F1B"
        config = PipelineConfig(self.ranks, self.virtual, schedule, self.microbatches, caching)
        config.check(self.ranks, self.batch)
        config.check_depth(self.ranks, 2 * self.layers)
        return config


@dataclass(frozen=True)
class Row:
    """Of an arm: seconds of a step, median and quartiles; the median of the ratios to the first
    arm's step of the same round, of seconds and of CPU seconds, all ranks together, which other
    work on the machine hardly changes; bytes sent in a step, both directions.
    """

    arm: str
    median: float
    quartiles: tuple[float, float]
    ratio: float
    cpu_ratio: float
    bytes: int


def measure(case: Case) -> list[Row]:
    """A row per arm. Raises ValueError for what cannot be laid out."""
    case.pipeline(True)
    with tempfile.TemporaryDirectory() as folder:
        spawn(_worker, (case, folder), nprocs=case.ranks)  # type: ignore[no-untyped-call]
        wall, cpu, sent = torch.load(Path(folder) / "times.pt", weights_only=True)
    rows = []
    for index, arm in enumerate(ARMS):
        low, median, high = statistics.quantiles(wall[index].tolist(), n=4)
        ratios = [float((of[index] / of[0]).quantile(0.5)) for of in (wall, cpu)]
        rows.append(Row(arm, median, (low, high), ratios[0], ratios[1], int(sent[index])))
    return rows


def _worker(rank: int, case: Case, folder: str) -> None:
    torch.set_num_threads(1)
    cuda = case.device == "cuda"
    if cuda:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=case.ranks,
    )
    device, groups = torch.device(case.device), Groups.make(case.ranks)
    arms = {name: _arm(case, device, groups, name) for name in ARMS}
    tokens = torch.randint(256, (case.batch, case.seq_len + 1), device=device)
    distributed.broadcast(tokens, 0)
    wall, cpu = (torch.zeros(len(ARMS), case.repeats, dtype=torch.float64) for _ in range(2))
    for lap in range(-2, case.repeats):  # the first ones warm up
        for index, pipeline in enumerate(arms.values()):
            wall[index, lap], cpu[index, lap] = _step(pipeline, tokens)
    sent = torch.tensor([sum(sum(s.sent_bytes.values()) for s in p.stages) for p in arms.values()])
    cpu, sent = cpu.to(device), sent.to(device)
    distributed.all_reduce(cpu)
    distributed.all_reduce(sent)
    if rank == 0:
        per_step = sent.cpu() // (case.repeats + 2)
        torch.save((wall, cpu.cpu(), per_step), f"{folder}/times.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def _arm(case: Case, device: torch.device, groups: Groups, name: str) -> Pipeline:
    variant, caching = ARMS[name]
    model = ModelConfig(256, case.dim, case.layers, max(1, case.dim // 64), residual=variant)
    return Pipeline(Transformer(model).to(device), case.pipeline(caching), groups)


def _criterion(logits: Any, targets: Any) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def _step(pipeline: Pipeline, tokens: Tensor) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process."""
    pipeline.network.zero_grad()
    distributed.barrier()
    start, cpu = time.perf_counter(), time.process_time()
    loss = pipeline.step(tokens[:, :-1], tokens[:, 1:], _criterion)
    loss.item()  # every rank has it at the end
    return time.perf_counter() - start, time.process_time() - cpu
