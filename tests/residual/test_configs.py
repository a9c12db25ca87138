"""Options that make no sense die at load, in one line with place, key and remedy."""

import pytest

from attnres_lab.config import load
from attnres_lab.errors import UserError

BASE = "model: {dim: 64, num_layers: 6, num_heads: 4}\nbudget: {steps: 2}\n"


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


def test_options_travel_from_a_file_into_the_label(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        BASE.replace(
            "num_heads: 4",
            "num_heads: 4, residual: {name: full, mixing: sigmoid, heads: 8, window: 8}",
        )
    )
    assert load(path).run_name == "full-sigmoid-h8-w8-d64-L6-s0"
