"""What a run says about its pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from attnres_lab.errors import nearest

#: Schedules of torch.distributed.pipelining, and whether a rank may have several stages.
SCHEDULES = {"GPipe": False, "1F1B": False, "Interleaved1F1B": True, "LoopedBFS": True}
_SPLIT = (
    "splits the backward pass into inputs and weights, and a source's gradient is not complete "
    "before the later stages' own; take Interleaved1F1B"
)
_FOLDED = (
    "is V-shaped: two stages in a row are on one rank, which then has nothing new to send; take "
    "Interleaved1F1B"
)
REFUSED = {
    "InterleavedZeroBubble": _SPLIT,
    "ZBVZeroBubble": _FOLDED,
    "DualPipeV": _FOLDED,
}


@dataclass(frozen=True)
class PipelineConfig:
    """Of ``train.strategy: pipeline``. Stage i of ``ranks`` x ``virtual_stages`` is on rank i mod
    ``ranks``; processes beyond ``ranks`` are further pipelines, data-parallel to the first.
    """

    ranks: int | None = None  # None: all processes
    virtual_stages: int = 1  # of each rank
    schedule: str = "1F1B"
    microbatches: int | None = None  # of each pipeline and optimiser step; None: as many as ranks
    caching: bool = True  # send a rank only what it does not hold

    def __post_init__(self) -> None:
        """Raises ValueError with the key and the remedy."""
        for key in ("ranks", "virtual_stages", "microbatches"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"train.pipeline.{key}: {value} is not positive")
        if self.schedule in REFUSED:
            raise ValueError(f"train.pipeline.schedule: {self.schedule} {REFUSED[self.schedule]}")
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"train.pipeline.schedule: unknown schedule '{self.schedule}'"
                f"{nearest(self.schedule, SCHEDULES)}"
            )
        if self.virtual_stages > 1 and not SCHEDULES[self.schedule]:
            raise ValueError(
                f"train.pipeline.virtual_stages: {self.schedule} has one stage per rank; leave it "
                "out, or take schedule Interleaved1F1B or LoopedBFS"
            )

    def check(self, world: int, batch_size: int) -> None:
        """Raise ValueError where ``world`` processes and a batch cannot be laid out so."""
        ranks = self.ranks or world
        if ranks < 2:
            raise ValueError(
                f"train.devices: a pipeline needs 2 ranks or more, {ranks} is asked for; set "
                "train.devices or train.pipeline.ranks"
            )
        if world % ranks:
            raise ValueError(
                f"train.pipeline.ranks: {world} processes are no whole number of pipelines of "
                f"{ranks} ranks; set train.devices to a multiple"
            )
        count = self.count(world)
        if count < ranks:
            raise ValueError(
                f"train.pipeline.microbatches: {count} are fewer than the {ranks} ranks, which "
                f"would never all be busy; give {ranks} or more"
            )
        rounds = count // ranks
        if self.schedule == "Interleaved1F1B" and count % rounds:
            raise ValueError(
                f"train.pipeline.microbatches: {count} are no multiple of the {rounds} rounds of "
                f"Interleaved1F1B over {ranks} ranks; give a multiple of {ranks}"
            )
        if batch_size % (count * (world // ranks)):
            raise ValueError(
                f"train.batch_size: {batch_size} is not a multiple of {count} microbatches x "
                f"{world // ranks} pipelines"
            )

    def count(self, world: int) -> int:
        """Microbatches of each pipeline and optimiser step."""
        return self.microbatches or self.ranks or world

    def check_depth(self, world: int, sublayers: int) -> None:
        """Raise ValueError where the sublayers cannot be shared out equally."""
        ranks = self.ranks or world
        if sublayers % (ranks * self.virtual_stages):
            raise ValueError(
                f"train.pipeline.virtual_stages: {sublayers} sublayers do not divide into {ranks} "
                f"ranks x {self.virtual_stages} stages; change either, or model.num_layers"
            )
