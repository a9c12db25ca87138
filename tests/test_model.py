"""The trunk: shapes, rotary positions, grouped queries, initialisation."""

import math

import pytest
import torch

from attnres_lab.mixers.rope import RopeConfig, rope_angles, rotate
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.residual.attnres import BlockConfig, FullConfig


def test_tokens_to_logits() -> None:
    model = Transformer(ModelConfig(vocab_size=50, dim=16, num_layers=2, num_heads=2))
    assert model(torch.randint(50, (3, 7))).shape == (3, 7, 50)


def test_rotary_scores_depend_on_the_distance_only_and_rotation_keeps_length() -> None:
    def angles(start: int, stop: int) -> torch.Tensor:
        return rope_angles(RopeConfig(), 8, 10_000.0, range(start, stop), torch.device("cpu"))

    q, k = torch.randn(8), torch.randn(8)
    at = rotate(torch.stack([q, k])[:, None].expand(2, 20, 8), angles(0, 20))
    torch.testing.assert_close(at[0, 5] @ at[1, 2], at[0, 15] @ at[1, 12], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(at[0, 17].norm(), q.norm())
    torch.testing.assert_close(angles(7, 10), angles(0, 10)[7:])


def test_grouped_queries_equal_heads_whose_keys_and_values_are_repeated() -> None:
    grouped = Transformer(ModelConfig(dim=16, num_layers=1, num_heads=4, num_kv_heads=2)).double()
    full = Transformer(ModelConfig(dim=16, num_layers=1, num_heads=4)).double()
    state = grouped.state_dict()
    # (key or value), group, head width, input
    kv = state["sublayers.0.kv.weight"].view(2, 2, 4, 16)
    state["sublayers.0.kv.weight"] = kv.repeat_interleave(2, dim=1).reshape(32, 16)
    full.load_state_dict(state)
    tokens = torch.randint(256, (2, 9))
    torch.testing.assert_close(grouped(tokens), full(tokens), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("residual", [FullConfig(), BlockConfig(num_blocks=3)])
def test_all_variants_of_a_seed_share_the_trunk_and_seeds_differ(
    residual: FullConfig | BlockConfig,
) -> None:
    base = Transformer(ModelConfig(dim=16, num_layers=3, num_heads=2), seed=1).state_dict()
    other = Transformer(
        ModelConfig(dim=16, num_layers=3, num_heads=2, residual=residual), seed=1
    ).state_dict()
    assert all(torch.equal(base[key], other[key]) for key in base)
    assert not torch.equal(
        base["embed.weight"],
        Transformer(ModelConfig(dim=16, num_layers=3, num_heads=2), seed=2).embed.weight,
    )


@pytest.mark.parametrize("tied", [False, True])
def test_the_table_of_initialisation_holds(tied: bool) -> None:
    model = Transformer(
        ModelConfig(
            dim=256,
            num_layers=3,
            num_heads=4,
            tie_embeddings=tied,
            vocab_size=512,
            residual=FullConfig(),
        )
    )
    assert model.embed.weight.std().item() == pytest.approx(1 / 16 if tied else 1.0, rel=0.02)
    assert model.head.weight.std().item() == pytest.approx(1 / 16, rel=0.02)
    shrink = 0.9866  # a normal cut at three standard deviations
    for sublayer in model.sublayers:
        out = sublayer.out.weight
        assert out.std().item() == pytest.approx(shrink / math.sqrt(out.shape[1] * 6), rel=0.02)
    assert model.sublayers[0].q.weight.std().item() == pytest.approx(shrink / 16, rel=0.02)
    assert not model.residual.pseudo_query.any()  # not touched by the generic initialiser


def test_the_norms_eps_is_negligible_at_initialisation() -> None:
    """Full AttnRes and the baseline agree before training to far better than the 2.8 % of small
    embeddings.
    """
    tokens = torch.randint(256, (4, 32))
    with torch.no_grad():
        base = Transformer(ModelConfig(dim=64, num_layers=8))(tokens)
        full = Transformer(ModelConfig(dim=64, num_layers=8, residual=FullConfig()))(tokens)
    assert ((full - base).norm() / base.norm()).item() < 2e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "do not divide"),
        ({"num_heads": 64}, "RoPE needs an even width"),
        ({"num_kv_heads": 3}, "does not divide model.num_heads"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"num_layers": 0}, "is not positive"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(dim=64, **options)
