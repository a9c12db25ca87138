"""What crosses a hop, counted from the names that variants give, against the closed forms."""

import pytest
import torch

from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.pipeline.layout import Layout, traffic, units
from attnres_lab.pipeline.run import shapes
from attnres_lab.residual import ResidualConfig
from attnres_lab.residual.attnres import BlockConfig, FullConfig


def sent(residual: ResidualConfig, layers: int, ranks: int, virtual: int, caching: bool) -> int:
    model = Transformer(ModelConfig(13, 16, layers, 2, residual=residual))
    model.residual.apart = True
    layout = Layout(ranks, virtual, 2 * layers)
    names = [list(named) for named in shapes(model, (2, 3), layout.cuts)]
    return units(traffic(layout, names, caching))


def embedding(ranks: int, virtual: int, caching: bool) -> int:
    """Each rank but the first is sent the embedding, once or at every stage."""
    return ranks - 1 if caching else ranks * virtual - 1


@pytest.mark.parametrize(
    ("residual", "layers", "ranks", "virtual", "whole", "cached", "papers"),
    [
        (BlockConfig(block_size=2), 8, 4, 2, 35, 21, 22),
        (BlockConfig(block_size=1), 4, 2, 2, 15, 7, 10),
        (FullConfig(), 8, 2, 4, 63, 15, 26),
    ],
    ids=["block-P4-V2", "block-P2-V2", "full-P2-V4"],
)
def test_tensors_per_token_are_the_closed_form(
    residual, layers, ranks, virtual, whole, cached, papers
):
    """The paper's count, (P (P - 1) / 2 + (V - 1) P^2) N_p, has a rank sent its own blocks again:
    (V - 1) P N_p more, and it leaves out the embedding, P - 1.
    """
    chunks, blocks = ranks * virtual, len(residual.ends(2 * layers)) // ranks // virtual
    assert sent(residual, layers, ranks, virtual, False) == whole
    assert sent(residual, layers, ranks, virtual, True) == cached
    assert whole == chunks * (chunks - 1) // 2 * blocks + embedding(ranks, virtual, False)
    once = ranks * (ranks - 1) // 2 + (virtual - 1) * ranks * (ranks - 1)
    assert cached == once * blocks + embedding(ranks, virtual, True)
    assert papers == (ranks * (ranks - 1) // 2 + (virtual - 1) * ranks**2) * blocks
    assert papers - (cached - (ranks - 1)) == (virtual - 1) * ranks * blocks


def test_the_baselines_stream_is_one_tensor_at_every_hop():
    for caching in (True, False):
        assert sent(ModelConfig().residual, 8, 4, 2, caching) == 7


def test_an_open_block_crosses_beside_the_closed_ones():
    """Blocks of 3 in stages of 2: at 2, 4, 6 sublayers 0, 1, 2 are closed and 1, 1, 0 open."""
    assert sent(BlockConfig(block_size=3), 4, 4, 1, True) == (1 + 1) + (1 + 1 + 1) + (1 + 2)
    assert sent(BlockConfig(block_size=3), 4, 2, 2, True) == (1 + 1) + (1 + 1) + 1


def test_what_has_left_the_window_is_not_sent():
    full = sent(FullConfig(), 4, 4, 1, False)
    assert full == 3 + (2 + 4 + 6)
    assert sent(FullConfig(window=3), 4, 4, 1, False) == 3 + (2 + 3 + 3)


def test_shapes_cost_no_memory_and_are_those_of_the_batch():
    model = Transformer(ModelConfig(13, 16, 2, 2, residual=BlockConfig(block_size=2)))
    model.residual.apart = True
    (crossing,) = shapes(model, (5, 7), (2,))
    assert {name: tuple(x.shape) for name, x in crossing.items()} == {
        "embedding": (5, 7, 16),
        "block1": (5, 7, 16),
    }
    assert all(x.device == torch.device("meta") and x.requires_grad for x in crossing.values())
