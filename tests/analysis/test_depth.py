"""Depth records become maps, masses and profiles."""

import json

import numpy as np
import pytest

from analysis.depth import load_depth, read_depth


def write(path, reads, **more):
    path.write_text(
        json.dumps(
            {
                "step": 7,
                "reads": reads,
                "output_rms": [1.0, 2.0],
                "gradient_norm": [0.5, 0.25],
                **more,
            }
        )
    )
    return path


def read(sublayer, kind, sources, weights):
    weights = np.asarray(weights, dtype=float)
    return {
        "sublayer": sublayer,
        "kind": kind,
        "sources": sources,
        "weights": weights.tolist(),
        "entropy": float(-np.sum(weights * np.log(weights))),
    }


BLOCK = [
    read(1, "mlp", ["embedding", "partial"], [0.25, 0.75]),
    read(2, "attention", ["embedding", "b1"], [0.5, 0.5]),
    read(3, "mlp", ["embedding", "b1", "partial"], [0.2, 0.3, 0.5]),
    read(4, "output", ["embedding", "b1", "b2"], [0.1, 0.3, 0.6]),
]


@pytest.fixture
def block(tmp_path):
    return read_depth(write(tmp_path / "step-000007.json", BLOCK))


def test_the_open_partial_sum_stands_in_the_column_of_its_block(block) -> None:
    assert list(block.attention.columns) == ["embedding", "b1", "b2"]
    expected = [[0.25, 0.75, np.nan], [0.5, 0.5, np.nan], [0.2, 0.3, 0.5], [0.1, 0.3, 0.6]]
    np.testing.assert_array_equal(block.attention.to_numpy(), expected)
    assert list(block.attention.index) == [(1, "mlp"), (2, "attention"), (3, "mlp"), (4, "output")]


def test_embedding_newest_and_far_masses_sum_to_one(block) -> None:
    np.testing.assert_allclose(block.mass[["embedding", "latest", "far"]].sum(axis=1), 1)
    np.testing.assert_allclose(block.mass["embedding"], [0.25, 0.5, 0.2, 0.1])
    np.testing.assert_allclose(block.mass["far"], [0, 0, 0.3, 0.3])


def test_own_is_the_partial_sum_and_nothing_for_a_read_without_one(block) -> None:
    np.testing.assert_array_equal(block.mass["own"], [0.75, np.nan, 0.5, np.nan])


def test_uniform_weights_have_evenness_one_and_a_single_source_none(tmp_path) -> None:
    reads = [
        read(1, "mlp", ["embedding", "f1"], [0.5, 0.5]),
        read(0, "attention", ["embedding"], [1.0]),
        read(2, "output", ["embedding", "f1", "f2"], [1 / 3] * 3),
    ]
    mass = read_depth(write(tmp_path / "step-1.json", reads)).mass
    np.testing.assert_allclose(mass["evenness"], [1, np.nan, 1])
    np.testing.assert_allclose(mass["entropy"], np.log([2, 1, 3]), atol=1e-12)
    assert mass["sources"].tolist() == [2, 1, 3]


def test_ten_and_more_sources_stay_in_their_order(tmp_path) -> None:
    names = ["embedding", *(f"f{i}" for i in range(1, 131))]
    record = read_depth(
        write(tmp_path / "step-1.json", [read(131, "output", names, np.full(131, 1 / 131))])
    )
    assert list(record.attention.columns) == names


def test_a_model_without_depth_attention_still_has_its_profile(tmp_path) -> None:
    record = read_depth(write(tmp_path / "step-1.json", [], update_ratio=[]))
    assert record.attention.empty
    assert record.profile["output_rms"].tolist() == [1, 2]
    assert record.profile["gradient_norm"].tolist() == [0.5, 0.25]
    assert list(record.profile.columns) == ["output_rms", "gradient_norm"]


def test_records_of_a_run_come_in_the_order_of_their_steps(tmp_path) -> None:
    folder = tmp_path / "artifacts" / "depth"
    folder.mkdir(parents=True)
    for step in (1000, 20):
        write(folder / f"step-{step}.json", BLOCK, step=step)
    assert [record.step for record in load_depth(tmp_path)] == [20, 1000]
    assert [record.step for record in load_depth(folder)] == [20, 1000]
    assert load_depth(tmp_path / "absent") == []


def test_a_gradient_that_overflowed_is_read_as_it_was(tmp_path) -> None:
    record = read_depth(write(tmp_path / "step-1.json", BLOCK, gradient_norm=["inf", "nan"]))
    np.testing.assert_array_equal(record.profile["gradient_norm"], [np.inf, np.nan])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "step-1.json: not a depth record"),
        ('{"step": 1}', "step-1.json: not a depth record .*reads"),
        ("[1, 2]", "step-1.json: not a depth record"),
        (
            '{"step": 1, "reads": [{"sublayer": 3, "kind": "mlp", "sources": ["embedding"], '
            '"weights": [0.5, 0.5], "entropy": 0}]}',
            "sublayer 3 has 2 weights for 1",
        ),
    ],
)
def test_a_bad_record_is_named(tmp_path, text, message) -> None:
    (tmp_path / "step-1.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_depth(tmp_path)
