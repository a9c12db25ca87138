"""The experiment's page as ``attnres ui`` opens it: a view that MLflow keeps as a tag of the
experiment and shows for its key in the address.
"""

from __future__ import annotations

import json
from typing import Any

KEY = "attnres"
#: Where MLflow (3.13 and later) looks for the view of the key in the address.
TAG = f"mlflow.sharedViewState.{KEY}"
COLUMNS = (
    *("tags.`variant`", "tags.`size`", "tags.`seed`"),
    *("metrics.`val/loss`", "metrics.`gain/best`", "metrics.`params`"),
    *("tags.`sweep`", "attributes.`Models`"),
)
#: Of all columns, the first two of which MLflow pins to the left, from left to right.
ORDER = ("attributes.`Run Name`", "runDateAndNestInfo", *COLUMNS[:-1], "duration", COLUMNS[-1])
#: Pixels: all in sight in a window of 1400.
WIDTHS = dict.fromkeys(ORDER, 80) | {ORDER[0]: 160, ORDER[1]: 145, "tags.`seed`": 92}
#: Sweeps, then trials, the newest first of both. In its own order, by date, MLflow folds trials
#: under their sweep, and a view cannot unfold them.
SORT = "tags.`kind`"
MAPS = "depth attention"  # what images of depth records are called in the store
#: Sections of charts in their order; losses and maps are open, the rest is closed. The name that
#: MLflow gives metrics without a prefix is the last but one.
OPEN, CLOSED = ("val", "train", "depth"), ("gain", "best", "optim", "perf")
REST = ("factor", "Model metrics", "System metrics")


def view() -> str:
    """The view as JSON: a line for each sweep and trial, columns of the science first, and charts
    with the losses first.
    """
    sections = [_section(name, shown=name in OPEN) for name in (*OPEN, *CLOSED, *REST)]
    # the second of each only so that MLflow does not set it before the first
    charts = [_chart(f"val/{name}", "val") for name in ("loss", "bpb")]
    charts += [_chart(f"train/{name}", "train") for name in ("loss", "final_loss")]
    charts += [_maps()]
    state: dict[str, Any] = {
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(ORDER),
        "columnWidths": WIDTHS,
        "orderByKey": SORT,
        "orderByAsc": False,
        "compareRunSections": sections,
        "isAccordionReordered": True,  # else MLflow sorts them by the alphabet
        "compareRunCharts": charts,
        "hideEmptyCharts": True,
        "runsHiddenMode": "FIRST_20_RUNS",
    }
    return json.dumps(state, sort_keys=True)


def _section(name: str, *, shown: bool) -> dict[str, Any]:
    flags = {"isReordered": False, "deleted": False, "isGenerated": True}
    return {"uuid": f"attnres-{name}", "name": name, "display": shown, **flags}


def _chart(metric: str, section: str) -> dict[str, Any]:
    """A line over steps, as MLflow makes one for each metric with a history."""
    return {
        **_card(metric, "LINE", section),
        "metricKey": metric,
        "displayName": metric.split("/")[-1],
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
    }


def _maps() -> dict[str, Any]:
    """Depth maps of the runs, without the list of all parameters that MLflow lays over them."""
    images = {"imageKeys": [MAPS], "step": 0, "showRunParams": False}
    return _card(MAPS, "IMAGE", "depth") | images


def _card(name: str, kind: str, section: str) -> dict[str, Any]:
    return {
        "uuid": f"attnres-chart-{name}",
        "type": kind,
        "metricSectionId": f"attnres-{section}",
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": True,
    }
