"""Depth attention as an image for MLflow's slider, and a sweep's figures to explore: one HTML page
that opens without a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attnres_lab.runs.folder import RunFolder, read_json
from attnres_lab.runs.looks import looks

AXES = ("tokens", "flops", "seconds")
# of the baseline, then of the others (runs/looks.py)
MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
FILLS = ("", "-open", "-dot", "-open-dot")
# of an image: inches, pixels an inch, and points of its letters, which are to be read in a tile of
# MLflow's, about 2 inches high
TILE, DOTS, LETTERS = (4.2, 3.5), 180, 12.5
SHORT = {"attention": "attn", "output": "out", "embedding": "emb"}
POINTS, RUNS = 200, 300  # more would make the page slow; it says what it leaves out


def page(title: str, records: Sequence[Mapping[str, Any]], paths: Sequence[Path]) -> str:
    """Loss curves of the runs in ``paths`` against a chosen axis, coloured by variant, and each
    variant's depth attention with a slider over steps.

    ``records`` are those of ``runs.table.table`` for the same paths.
    """
    runs = list(zip(records, map(RunFolder, paths), strict=True))
    figures = [
        _curves(
            runs[:RUNS],
            f"{escape(title)}: loss"
            + (f", {RUNS} of {len(runs)} runs" if len(runs) > RUNS else ""),
        )
    ]
    seen = set()
    for record, files in sorted(runs, key=lambda run: run[0].get("params", 0), reverse=True):
        if record["variant"] not in seen and (frames := sorted(files.depth.glob("*.json"))):
            seen.add(record["variant"])
            figures += _depth(
                [read_json(path) or {} for path in frames],
                escape(f"depth attention of {files.path.name}, {record['variant']}"),
            )
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=index == 0)
        for index, figure in enumerate(figures)
    ]
    head = f"<head><meta charset='utf-8'><title>{escape(title)}</title></head>"
    return f"<!DOCTYPE html><html>{head}<body>{''.join(parts)}</body></html>"


def _curves(runs: Sequence[tuple[Mapping[str, Any], RunFolder]], title: str) -> Any:
    """Colour and marker are the variant's, dots the validation loss; the larger a size, the wider
    its lines and the larger its markers.
    """
    from plotly import graph_objects as go

    layout = {"xaxis_title": AXES[0], "yaxis_title": "nats per token", "height": 620}
    figure = go.Figure(layout={"title": title, **layout})
    style = looks(record["variant"] for record, _ in runs)
    order = sorted(runs, key=lambda run: run[0].get("params") or 0)
    sizes = list(dict.fromkeys(str(record["size"]) for record, _ in order))
    places: dict[str, list[list[Any]]] = {axis: [] for axis in AXES}
    shown: list[str] = []  # the size of each line
    for record, files in runs:
        look, size = style[str(record["variant"])], str(record["size"])
        share = sizes.index(size) / max(len(sizes) - 1, 1)
        symbol = MARKERS[look.marker] + FILLS[look.line % len(FILLS)]
        for key, dash in (("train/loss", "solid"), ("val/loss", "dot")):
            rows = [row for row in files.rows() if isinstance(row.get(key), int | float)]
            rows = rows[:: max(1, len(rows) // POINTS)]
            for axis in AXES:
                places[axis].append([row.get(axis) for row in rows])
            shown.append(size)
            figure.add_scatter(
                x=places[AXES[0]][-1],
                y=[row[key] for row in rows],
                name=escape(f"{record['variant']} {size} s{record['seed']}, {key}"),
                line={"color": look.color, "dash": dash, "width": 1 + 3 * share},
                marker={"symbol": symbol, "size": 5 + 5 * share},
                mode="lines+markers",
                legendgroup=escape(str(record["variant"])),
            )
    menus = _menus(places, sizes, shown)
    return figure.update_layout(updatemenus=menus, margin={"t": 130}, title={"y": 0.97})


def _menus(
    places: Mapping[str, list[list[Any]]], sizes: Sequence[str], shown: Sequence[str]
) -> list[dict[str, Any]]:
    """To choose the x axis, its scale, and one size or all; ``shown``: the size of each line."""
    axes = [
        {
            "label": axis,
            "method": "update",
            "args": [{"x": places[axis]}, {"xaxis.title.text": axis}],
        }
        for axis in AXES
    ]
    scales = [
        {"label": f"{scale} x", "method": "relayout", "args": [{"xaxis.type": scale}]}
        for scale in ("linear", "log")
    ]
    seen = {"all sizes": [True] * len(shown)}
    seen |= {size: [size == own for own in shown] for size in sizes}
    picks = [
        {"label": escape(name), "method": "restyle", "args": [{"visible": mask}]}
        for name, mask in seen.items()
    ]
    place = {"y": 1.16, "xanchor": "left"}
    across = place | {"direction": "right", "type": "buttons"}
    return [
        across | {"buttons": axes, "x": 0},
        across | {"buttons": scales, "x": 0.4},
        place | {"direction": "down", "type": "dropdown", "buttons": picks, "x": 0.7},
    ]


def _depth(records: Sequence[Mapping[str, Any]], title: str) -> list[Any]:
    """Who reads what, step by step; nothing for a variant that reads nothing."""
    from plotly import graph_objects as go

    records = [record for record in records if record.get("reads")]
    if not records:
        return []
    maps = []
    for record in records:
        rows, columns, weights = _grid(record["reads"])
        table = weights.astype(object)
        table[np.isnan(weights)] = None
        words = "%{x}: %{z:.3f}<extra>%{y}</extra>"
        names = {"x": [*map(escape, columns)], "y": [*map(escape, rows)]}
        scale = {"zmin": 0, "zmax": 1, "colorscale": "Cividis"}
        maps.append(go.Heatmap(z=table, hovertemplate=words, **names, **scale))
    frames = [
        go.Frame(data=[image], name=str(record["step"]))
        for image, record in zip(maps, records, strict=True)
    ]
    steps = [
        {"label": frame.name, "method": "animate", "args": [[frame.name], {"mode": "immediate"}]}
        for frame in frames
    ]
    layout = {
        "title": title,
        "height": 620,
        "xaxis": {"title": "source"},
        "yaxis": {"autorange": "reversed", "title": "read before sublayer"},
        "sliders": [
            {"steps": steps, "active": len(steps) - 1, "currentvalue": {"prefix": "step "}}
        ],
    }
    return [go.Figure(data=[maps[-1]], frames=frames, layout=layout)]


def heat_map(record: Mapping[str, Any]) -> npt.NDArray[np.uint8] | None:
    """Depth-attention weights as an image: a row per read (the first on top), a column per source,
    white where a read has no such source; colours from 0 to 1 in every image, by the root of the
    weight, so that small ones are told apart too.

    Returns [height, width, 3]; None for a record without reads.
    """
    from matplotlib import colormaps

    if not record["reads"]:
        return None
    rows, columns, weights = _grid(record["reads"])
    frame, (left, top, right, bottom) = _frame(tuple(rows), tuple(columns))
    colors = colormaps["cividis"](np.sqrt(weights), bytes=True)[..., :3]
    colors[np.isnan(weights)] = 255
    across, down = np.arange(int(left), int(right) + 1), np.arange(int(top), int(bottom) + 1)
    column = ((across + 0.5 - left) / (right - left) * len(columns)).astype(int)
    row = ((down + 0.5 - top) / (bottom - top) * len(rows)).astype(int)
    column, row = column.clip(0, len(columns) - 1), row.clip(0, len(rows) - 1)
    image = frame.copy()
    inside = image[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
    empty = (inside == 255).all(axis=2)  # the lines around it stay
    inside[empty] = colors[row[:, None], column][empty]
    return image


@lru_cache(32)
def _frame(
    rows: tuple[str, ...], columns: tuple[str, ...]
) -> tuple[npt.NDArray[np.uint8], tuple[float, float, float, float]]:
    """The image of a map of these names with nothing in it, and the edges of the map: left, top,
    right and bottom in pixels from the corner above. Drawing it takes fifty times as long as
    putting the colours in, and runs of one shape have the same.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    with rc_context({"font.size": LETTERS}):
        figure = Figure(figsize=TILE, dpi=DOTS, layout="constrained")
        ax = figure.subplots()
        nothing = np.full((len(rows), len(columns)), np.nan)
        shown = ax.imshow(nothing, cmap="cividis", norm=PowerNorm(0.5, 0, 1), aspect="auto")
        bar = figure.colorbar(shown, ax=ax, label="weight", ticks=[0, 0.05, 0.2, 0.5, 1])
        bar.ax.set_yticklabels(["0", "0.05", "0.2", "0.5", "1"])
        for names, place, most in ((rows, ax.set_yticks, 9), (columns, ax.set_xticks, 6)):
            step = -(-len(names) // most)
            place(range(0, len(names), step), names[::step])
        ax.set(xlabel="source", ylabel="read before sublayer")
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        image = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
        box = ax.get_window_extent()  # from the corner below
        return image, (box.x0, len(image) - box.y1, box.x1, len(image) - box.y0)


def _grid(
    reads: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[str], npt.NDArray[np.float64]]:
    """Short names of the reads and of their sources, and the weights, NaN where a read has no such
    source; the open partial sum stands where the block will that it becomes.
    """
    named = []
    for read in reads:
        sources, count = read["sources"], len(read["sources"])
        names = [f"b{count - 1}" if name == "partial" else str(name) for name in sources]
        named.append(dict(zip(names, read["weights"], strict=True)))
    columns = sorted(
        {name for read in named for name in read},
        key=lambda name: (name != "embedding", int("".join(filter(str.isdigit, name)) or 0)),
    )
    rows = [f"{read['sublayer']} {SHORT.get(read['kind'], read['kind'])}" for read in reads]
    weights = np.array([[read.get(name, np.nan) for name in columns] for read in named], float)
    return rows, [SHORT.get(name, name) for name in columns], weights
