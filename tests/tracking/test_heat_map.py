"""The picture of a depth record: the weights, in a frame that is drawn once, as Matplotlib draws
them.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from attnres_lab.tracking.figures import DOTS, LETTERS, TILE, _grid, heat_map


def read(weights: list[float], sources: list[str], sublayer: int) -> dict:
    return {"sublayer": sublayer, "kind": "mlp", "sources": sources, "weights": weights}


def test_the_heat_map_shows_the_weights() -> None:
    """Dark is no weight, bright is all of it, white is no such source; colours mean the same in
    every image.
    """
    small = read([0.0, 1.0], ["embedding", "f1"], 1)
    image = heat_map({"reads": [read([1.0], ["embedding"], 0), small]})
    height, width = image.shape[:2]
    assert (width, height) == (round(TILE[0] * DOTS), round(TILE[1] * DOTS))
    colors = {tuple(color) for color in image.reshape(-1, 3).tolist()}
    ends = colormaps["cividis"]([0.0, 1.0], bytes=True)
    dark, bright = (tuple(end[:3]) for end in ends.tolist())
    assert {bright, dark, (255, 255, 255)} <= colors
    flat = heat_map({"reads": [read([0.25] * 4, ["embedding", "f1", "f2", "f3"], 3)]})
    middle = flat[height // 2, width // 3].tolist()
    assert tuple(middle) not in (bright, dark)  # a quarter is a quarter, not the largest here
    assert heat_map({"reads": []}) is None


@pytest.mark.parametrize("shape", [(17, 17), (2, 2), (33, 5), (97, 97)])
def test_a_map_is_put_into_its_frame_as_matplotlib_draws_it(shape) -> None:
    """The whole figure in one go; and nothing of an earlier map with the same names is left in a
    later one.
    """
    count, width = shape
    random = np.random.default_rng(0)
    names = ["embedding", *(f"f{k}" for k in range(1, width))]

    def record() -> dict:
        lengths = [max(1, (k + 1) * width // count) for k in range(count)]
        weights = [random.dirichlet(np.ones(length)).tolist() for length in lengths]
        return {"reads": [read(w, names[: len(w)], k) for k, w in enumerate(weights)]}

    for found in (record(), record()):
        image, drawn = heat_map(found), whole_figure(found)
        assert image.shape == drawn.shape
        near = np.zeros(image.shape[:2], bool)  # nothing is more than a pixel from its place
        for shift in np.ndindex(3, 3):
            moved = np.roll(drawn, np.array(shift) - 1, (0, 1))
            near |= (image == moved).all(axis=2)
        assert near.all()
        assert (image == drawn).all(axis=2).mean() > 0.95


def whole_figure(record: dict) -> np.ndarray:
    """The map, its axes and its colour bar in one go."""
    rows, columns, weights = _grid(record["reads"])
    with rc_context({"font.size": LETTERS}):
        figure = Figure(figsize=TILE, dpi=DOTS, layout="constrained")
        ax = figure.subplots()
        norm = PowerNorm(0.5, 0, 1)
        shown = ax.imshow(weights, cmap="cividis", norm=norm, aspect="auto", interpolation="none")
        bar = figure.colorbar(shown, ax=ax, label="weight", ticks=[0, 0.05, 0.2, 0.5, 1])
        bar.ax.set_yticklabels(["0", "0.05", "0.2", "0.5", "1"])
        for labels, place, most in ((rows, ax.set_yticks, 9), (columns, ax.set_xticks, 6)):
            step = -(-len(labels) // most)
            place(range(0, len(labels), step), labels[::step])
        ax.set(xlabel="source", ylabel="read before sublayer")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]


def test_the_open_sum_of_a_block_stands_where_its_block_will() -> None:
    reads = [
        read([0.4, 0.6], ["embedding", "partial"], 1),
        read([0.2, 0.3, 0.5], ["embedding", "b1", "partial"], 3),
    ]
    rows, columns, weights = _grid(reads)
    assert (rows, columns) == (["1 mlp", "3 mlp"], ["emb", "b1", "b2"])
    assert weights[0, :2].tolist() == [0.4, 0.6]
    assert math.isnan(weights[0, 2])
