"""Options that make no sense die at load, in one line with place, key and remedy."""

from pathlib import Path

import pytest

from attnres_lab.config import content_hash, load
from attnres_lab.errors import UserError

TINY = Path(__file__).parents[2] / "experiments" / "tiny.yaml"
BASE = "model: {dim: 64, num_layers: 6, num_heads: 4}\nbudget: 2 steps\n"


@pytest.mark.parametrize(
    ("residual", "message"),
    [
        ("{name: full, mixing: hard}", "mixing: "),
        ("{name: full, heads: 5}", "heads: 5 heads do not divide model.dim = 64"),
        ("{name: full, heads: 0}", "heads: 0 heads do not divide"),
        ("{name: full, temperature: 0}", "temperature: 0.0 is not positive"),
        ("{name: full, window: 0}", "window: 0 is not within 1 and 11; leave it out"),
        ("{name: full, window: 12}", "window: 12 is not within 1 and 11; leave it out"),
        (
            "{name: full, window: 4, output_read: false}",
            "output_read: the sum of all outputs would see past the window",
        ),
        ("{name: block, window: 4}", "window: unknown key"),
        (
            "{name: full, mixing: static, query: input}",
            "query: static mixing has neither query nor keys",
        ),
        (
            "{name: full, mixing: static, key_norm: false}",
            "key_norm: static mixing has neither query nor keys",
        ),
        (
            "{name: block, mixing: static, heads: 4}",
            "heads: static mixing has neither query nor keys",
        ),
        (
            "{name: block, num_blocks: 2, block_size: 3}",
            "block takes num_blocks or block_size, not both",
        ),
        ("{name: block, num_blocks: 13}", "num_blocks: 13 is not within 1 and the 12 sublayers"),
        ("{name: block, block_size: 0}", "block_size: 0 is not within"),
        ("{name: denseformer, dilation: 7}", "dilation: 7 is not within 1 and the 6 layers"),
        ("{name: denseformer, period: 0}", "period: 0 is not within 1 and the 6 layers"),
        ("{name: hyper, streams: 1}", "streams: 1 is fewer than 2"),
        ("{name: mhc, streams: 1}", "streams: 1 is fewer than 2"),
        (
            "{name: mhc, streams: 6, mixing: permutations}",
            "streams: 6 streams have 720 permutations; take 5 or fewer",
        ),
        ("{name: rescaled, streams: 2}", "streams: unknown key"),
        ("{name: full, heads: many}", "heads: 'many' is neither a number nor kv"),
        ("{name: full, query_std: -1}", "query_std: -1.0 is negative"),
        ("{name: full, query: input, query_std: 0.02}", "query_std: there is no pseudo-query"),
        ("{name: block, mixing: static, query_std: 0.02}", "query_std: there is no pseudo-query"),
        ("{name: full, scale: max}", "scale: "),
        ("{name: rmsblock, num_blocks: 13}", "num_blocks: 13 is not within 1 and the 12"),
        ("{name: frac, parts: 5}", "parts: 5 is not a divisor of model.dim = 64 from 2 on"),
        ("{name: frac, parts: 1}", "parts: 1 is not a divisor of model.dim = 64 from 2 on"),
        ("{name: delta, block_size: 13}", "block_size: 13 is not within 1 and the 12 sublayers"),
        ("{name: delta, query_std: -1}", "query_std: -1.0 is negative"),
        ("{name: delta, gate: true}", "gate: beside queries at zero neither would learn"),
        ("{name: gated, streams: 1}", "streams: 1 is fewer than 2"),
        ("{name: gated, rank: 0}", "rank: 0 is not within 1 and 256"),
        ("{name: x0, streams: 2}", "streams: unknown key"),
        ("{name: ddl, beta: 2}", "beta: unknown key"),
        ("{name: value, weight: 1.5}", "weight: 1.5 is not within 0 and 1"),
        ("{name: mudd, ways: qk}", "ways: "),
    ],
)
def test_impossible_options(tmp_path, residual, message):
    path = tmp_path / "run.yaml"
    path.write_text(BASE.replace("num_heads: 4", f"num_heads: 4, residual: {residual}"))
    with pytest.raises(UserError) as caught:
        load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}:1: model.residual")
    assert message in line
    assert "\n" not in line


def test_one_layer_has_no_values_to_mix(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(BASE.replace("num_layers: 6", "num_layers: 1, residual: value"))
    with pytest.raises(
        UserError, match=r"run\.yaml:1: model\.residual\.name: in a model of one layer"
    ):
        load(path)


def test_options_travel_from_a_file_into_the_label(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        BASE.replace(
            "num_heads: 4",
            "num_heads: 4, residual: {name: full, mixing: sigmoid, heads: 8, window: 8}",
        )
    )
    assert load(path).run_name == "full-sigmoid-h8-w8-d64-L6-s0"


@pytest.mark.parametrize(
    ("residual", "identity"),
    [
        ({"name": "baseline"}, "9d0e30cf5781"),
        ({"name": "full"}, "7b34c7d70785"),
        ({"name": "block"}, "ca74e89550bf"),
        ({"name": "denseformer"}, "bc320e2a9aff"),
        ({"name": "hyper"}, "2a341ef728af"),
        ({"name": "mhc"}, "0c1cd6173859"),
        ({"name": "delta"}, "6ba86cb93b11"),
        ({"name": "rescaled"}, "ebdbdbcbde06"),
        ({"name": "block", "block_size": 4, "heads": 2, "mixing": "sigmoid"}, "2843e8892029"),
    ],
    ids=str,
)
def test_options_that_came_later_leave_the_identity_of_older_runs(residual, identity):
    """The hashes are those from before the options in ``later``: a sweep still finds its trials."""
    assert content_hash(load(TINY, {"model.residual": residual})) == identity


@pytest.mark.parametrize(("kv_heads", "identity"), [(2, "739138756432"), (4, "3db7868c2cc9")])
def test_kv_heads_are_one_variant_at_all_sizes_and_the_run_of_their_number(kv_heads, identity):
    """The label names no number, so that a table has one row; the identity is that of the number,
    and so of the runs that were recorded with it.
    """
    sizes = {"model.num_heads": 8, "model.num_kv_heads": kv_heads}
    config = load(TINY, sizes | {"model.residual": {"name": "full", "heads": "kv"}})
    number = load(TINY, sizes | {"model.residual": {"name": "full", "heads": kv_heads}})
    assert config.variant == "full-hkv"
    assert number.variant == f"full-h{kv_heads}"
    assert content_hash(config) == content_hash(number) == identity


def test_an_option_that_came_later_is_part_of_the_identity_once_it_is_set():
    seen = {
        content_hash(load(TINY, {"model.residual": residual}))
        for residual in (
            {"name": "full"},
            {"name": "full", "query_std": 0.02},
            {"name": "full", "scale": "sum"},
            {"name": "delta"},
            {"name": "delta", "block_size": 2},
            {"name": "delta", "null_source": True},
        )
    }
    assert len(seen) == 6
