"""Groups of gloo processes for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def _worker(rank: int, world: int, folder: str, task: Callable[[int], Any]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    result = task(rank)
    if rank == 0:
        torch.save(result, f"{folder}/result.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def on_ranks(world: int, folder: Path, task: Callable[[int], Any]) -> Any:
    """What ``task(rank)`` returns at rank 0."""
    multiprocessing.spawn(_worker, (world, str(folder), task), nprocs=world)
    return torch.load(folder / "result.pt", weights_only=False)
