"""Depth attention as an image for MLflow's slider, and a sweep's figures to explore: one HTML page
that opens without a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
CELL = 16  # pixels of an image per weight
POINTS, RUNS = 200, 300  # more would make the page slow; it says what it leaves out


def page(title: str, records: Sequence[Mapping[str, Any]], paths: Sequence[Path]) -> str:
    """Loss curves of the runs in ``paths`` against a chosen axis, coloured by variant, and each
    variant's depth attention with a slider over steps.

    ``records`` are those of ``folders.records`` for the same paths.
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
        if record["variant"] not in seen and (
            frames := sorted((files.artifacts / "depth").glob("*.json"))
        ):
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
    from plotly import graph_objects as go

    figure = go.Figure(
        layout={
            "title": title,
            "xaxis_title": AXES[0],
            "yaxis_title": "nats per token",
            "height": 620,
        }
    )
    style = looks(record["variant"] for record, _ in runs)
    places: dict[str, list[list[Any]]] = {axis: [] for axis in AXES}
    for record, files in runs:
        for key, dash in (("train/loss", "solid"), ("val/loss", "dot")):
            rows = [row for row in files.rows() if isinstance(row.get(key), int | float)]
            rows = rows[:: max(1, len(rows) // POINTS)]
            for axis in AXES:
                places[axis].append([row.get(axis) for row in rows])
            name = escape(f"{record['variant']} {record['size']} s{record['seed']}, {key}")
            look = style[str(record["variant"])]
            line = {"color": look.color, "dash": dash}
            loss = [row[key] for row in rows]
            figure.add_scatter(
                x=places[AXES[0]][-1],
                y=loss,
                name=name,
                line=line,
                marker={"symbol": MARKERS[look.marker]},
                mode="lines+markers",
                legendgroup=escape(str(record["variant"])),
            )
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
    menus = [
        {
            "buttons": buttons,
            "type": "buttons",
            "direction": "right",
            "x": x,
            "y": 1.16,
            "xanchor": "left",
        }
        for buttons, x in ((axes, 0), (scales, 0.4))
    ]
    return figure.update_layout(updatemenus=menus, margin={"t": 130}, title={"y": 0.97})


def _depth(records: Sequence[Mapping[str, Any]], title: str) -> list[Any]:
    """Who reads what, step by step; nothing for a variant that reads nothing."""
    from plotly import graph_objects as go

    records = [record for record in records if record.get("reads")]
    if not records:
        return []
    reads = records[-1]["reads"]
    width = max(len(read["weights"]) for read in reads)
    text = [
        [*map(escape, read["sources"])] + [""] * (width - len(read["weights"])) for read in reads
    ]
    maps = [
        go.Heatmap(
            z=[
                read["weights"] + [None] * (width - len(read["weights"]))
                for read in record["reads"]
            ],
            text=text,
            hovertemplate="%{text}: %{z:.3f}<extra>%{y}</extra>",
            zmin=0,
            zmax=1,
            colorscale="Cividis",
        )
        for record in records
    ]
    frames = [
        go.Frame(data=[image], name=str(record["step"]))
        for image, record in zip(maps, records, strict=True)
    ]
    steps = [
        {"label": frame.name, "method": "animate", "args": [[frame.name], {"mode": "immediate"}]}
        for frame in frames
    ]
    rows = {
        "tickvals": list(range(len(reads))),
        "ticktext": [escape(f"{read['sublayer']} {read['kind']}") for read in reads],
    }
    layout = {
        "title": title,
        "height": 620,
        "xaxis": {"title": "source"},
        "yaxis": {"autorange": "reversed", "title": "read", **rows},
        "sliders": [
            {"steps": steps, "active": len(steps) - 1, "currentvalue": {"prefix": "step "}}
        ],
    }
    return [go.Figure(data=[maps[-1]], frames=frames, layout=layout)]


def heat_map(record: Mapping[str, Any]) -> npt.NDArray[np.uint8] | None:
    """Depth-attention weights as an image: a row per read (the first on top), a column per source,
    white where a read has no such source.

    Returns [reads * CELL, sources * CELL, 3]; None for a record without reads.
    """
    from matplotlib import colormaps

    weights = [read["weights"] for read in record["reads"]]
    if not weights:
        return None
    image = np.full((len(weights), max(map(len, weights)), 3), 255, np.uint8)
    for row, values in enumerate(weights):
        image[row, : len(values)] = (
            colormaps["cividis"](np.clip(values, 0.0, 1.0))[:, :3] * 255
        ).round()
    return image.repeat(CELL, 0).repeat(CELL, 1)
