"""Pipelines of gloo processes train as one process does, in float64; a group of processes serves
many cases.
"""

from dataclasses import replace

import pytest
import torch
from processes import on_ranks
from ranks import VOCAB, B, Piped, T, one_process, one_record, pipelined

from attnres_lab.mixers import MixersConfig
from attnres_lab.mixers.moe import MoEConfig
from attnres_lab.model import ModelConfig
from attnres_lab.pipeline import PipelineConfig
from attnres_lab.pipeline.cost import Work, sizes
from attnres_lab.residual.attnres import BlockConfig, FullConfig
from attnres_lab.residual.baseline import BaselineConfig
from attnres_lab.residual.delta import DeltaConfig
from attnres_lab.residual.denseformer import DenseFormerConfig
from attnres_lab.residual.mhc import MHCConfig
from attnres_lab.residual.mudd import MUDDConfig
from attnres_lab.residual.value import ValueConfig
from attnres_lab.training.probe import PER_SUBLAYER

DIM = 16
LOOPED = PipelineConfig(ranks=2, virtual_stages=2, schedule="Interleaved1F1B", microbatches=4)


def trunk(residual, layers=4, **options):
    return ModelConfig(VOCAB, DIM, layers, 2, residual=residual, **options)


HYBRID = {"mixers": MixersConfig(pattern=("kda", "mla")), "mlp": MoEConfig(experts=4)}
OPEN = BlockConfig(block_size=3)  # stages of two sublayers cut its blocks open

#: Name to trunk and pipeline.
TWO = {
    "baseline-GPipe": (trunk(BaselineConfig()), PipelineConfig(schedule="GPipe", microbatches=4)),
    "baseline": (trunk(BaselineConfig()), LOOPED),
    "full-1F1B": (trunk(FullConfig()), PipelineConfig(schedule="1F1B", microbatches=4)),
    "full": (trunk(FullConfig()), LOOPED),
    "open": (trunk(OPEN), LOOPED),
    "open-BFS": (
        trunk(OPEN),
        PipelineConfig(virtual_stages=2, schedule="LoopedBFS", microbatches=8),
    ),
    "heads": (trunk(BlockConfig(block_size=3, heads=4)), LOOPED),
    "mhc": (trunk(MHCConfig()), LOOPED),
    "denseformer": (trunk(DenseFormerConfig()), LOOPED),
    "tied": (trunk(OPEN, tie_embeddings=True), LOOPED),
    "recomputed": (trunk(OPEN, activation_checkpointing=True), LOOPED),
    "hybrid": (trunk(OPEN, **HYBRID), LOOPED),
    "full-V4": (
        trunk(FullConfig(), 8),
        PipelineConfig(virtual_stages=4, schedule="Interleaved1F1B", microbatches=4),
    ),
}
MORE = {
    "full-window": (trunk(FullConfig(window=3)), LOOPED),
    # few steps: this training is so sharp that rounding grows a hundred thousand times in twelve
    "input-query": (trunk(BlockConfig(num_blocks=4, query="input")), LOOPED, 3),
    "denseformer-2x1": (trunk(DenseFormerConfig(dilation=2)), LOOPED),
    "delta": (trunk(DeltaConfig(block_size=3)), LOOPED),
    "value": (trunk(ValueConfig(weight=0.5)), LOOPED),
    "mudd": (trunk(MUDDConfig()), LOOPED),
    "blocks": (trunk(BlockConfig(block_size=1)), LOOPED, 3),
    "blocks-whole": (trunk(BlockConfig(block_size=1)), replace(LOOPED, caching=False), 3),
    "full-V4-whole": (
        trunk(FullConfig(), 8),
        PipelineConfig(virtual_stages=4, schedule="Interleaved1F1B", microbatches=4, caching=False),
    ),
    "open-whole": (trunk(OPEN), replace(LOOPED, caching=False)),
}
_P4 = {"virtual_stages": 2, "schedule": "Interleaved1F1B", "microbatches": 4}
FOUR = {
    "block-P4-V2": (trunk(BlockConfig(block_size=2), 8), PipelineConfig(**_P4)),
    "block-P4-V2-whole": (
        trunk(BlockConfig(block_size=2), 8),
        PipelineConfig(**_P4, caching=False),
    ),
    "open-P4": (trunk(OPEN, 8), PipelineConfig(**_P4)),
    "beside-data": (trunk(OPEN, tie_embeddings=True), LOOPED),
    "hybrid-beside-data": (trunk(OPEN, **HYBRID), LOOPED),
    "full-1F1B-P4": (trunk(FullConfig()), PipelineConfig(microbatches=8)),
}
EIGHT = {
    "full-P8": (trunk(FullConfig()), PipelineConfig(microbatches=8)),
    "open-P8-V2": (
        trunk(OPEN, 8),
        PipelineConfig(virtual_stages=2, schedule="Interleaved1F1B", microbatches=8),
    ),
}
#: Tensors of the width of the model that cross all hops for a token.
UNITS = {
    "full": 7,
    "blocks": 7,
    "blocks-whole": 15,
    "full-V4": 15,
    "full-V4-whole": 63,
    "block-P4-V2": 21,
    "block-P4-V2-whole": 35,
    "baseline": 3,
}


def two(rank):
    return {name: pipelined(*case) for name, case in TWO.items()}


def more(rank):
    return {name: pipelined(*case) for name, case in MORE.items()}


def four(rank):
    return {name: pipelined(*case) for name, case in FOUR.items()}


def eight(rank):
    return {name: pipelined(*case) for name, case in EIGHT.items()}


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    return on_ranks(2, tmp_path_factory.mktemp("two"), two)


@pytest.fixture(scope="module")
def more_on_two(tmp_path_factory):
    return on_ranks(2, tmp_path_factory.mktemp("more"), more)


@pytest.fixture(scope="module")
def on_four(tmp_path_factory):
    return on_ranks(4, tmp_path_factory.mktemp("four"), four)


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
    return on_ranks(8, tmp_path_factory.mktemp("eight"), eight)


def check(found: Piped, config: ModelConfig) -> None:
    """Losses, gradients, norms before clipping, and the weights after the last AdamW step."""
    whole = one_process(config, len(found.losses))
    assert found.losses == pytest.approx(whole.losses, rel=1e-12)
    assert found.norms == pytest.approx(whole.norms, rel=1e-11)
    assert found.gradients.keys() >= whole.gradients.keys()
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-12, atol=1e-12)
    assert found.weights.keys() == whole.weights.keys()
    for name, weight in whole.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.logits, whole.logits, rtol=1e-12, atol=1e-12)


def check_depth(found: Piped, config: ModelConfig, pipeline: PipelineConfig) -> None:
    """Each sublayer and read has the row of its own stage; measured in fp32. LoopedBFS goes back
    from the last micro-batch, so its gradients are those of the first.
    """
    whole = one_record(config, pipeline.microbatches)
    if pipeline.schedule == "LoopedBFS":
        back = one_record(config, pipeline.microbatches, backwards=True)
        whole["gradient_norm"] = back["gradient_norm"]
    assert found.depth is not None
    assert [r["sources"] for r in found.depth["reads"]] == [r["sources"] for r in whole["reads"]]
    for ours, theirs in zip(found.depth["reads"], whole["reads"], strict=True):
        assert ours["weights"] == pytest.approx(theirs["weights"], rel=1e-5)
        assert ours["weights_by_position"] == [
            pytest.approx(row, rel=1e-5) for row in theirs["weights_by_position"]
        ]
        assert (ours["sublayer"], ours["kind"]) == (theirs["sublayer"], theirs["kind"])
    for key in PER_SUBLAYER:
        assert len(whole[key]) == config.num_sublayers
        assert found.depth[key] == pytest.approx(whole[key], rel=1e-5), key


def check_bytes(name: str, found: Piped, case: tuple, ranks: int) -> None:
    """What the stages counted, the closed form where there is one, and the cost model agree."""
    config, pipeline = case[:2]
    count = pipeline.microbatches
    work = Work(ranks, pipeline.virtual_stages, count, B // count, T, pipeline.caching, width=8)
    size = count * sum(map(sum, sizes(config, work)))
    assert found.bytes == {"forward": size, "backward": size}
    if name in UNITS:
        assert size == UNITS[name] * B * T * DIM * 8


@pytest.mark.parametrize("name", TWO)
def test_two_ranks_train_as_one_process(name, on_two):
    check(on_two[name], TWO[name][0])
    check_depth(on_two[name], *TWO[name][:2])
    check_bytes(name, on_two[name], TWO[name], 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_variants_on_two_ranks(name, more_on_two):
    check(more_on_two[name], MORE[name][0])
    check_bytes(name, more_on_two[name], MORE[name], 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_ranks_train_as_one_process(name, on_four):
    check(on_four[name], FOUR[name][0])
    if "data" not in name:
        check_bytes(name, on_four[name], FOUR[name], 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", EIGHT)
def test_eight_ranks_train_as_one_process(name, on_eight):
    check(on_eight[name], EIGHT[name][0])
