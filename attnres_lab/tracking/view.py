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
    "attributes.`Models`",
)
#: Sections of charts in their order; the losses are open, the rest is closed. The name that MLflow
#: gives metrics without a prefix is the last but one.
OPEN, CLOSED = ("val", "train"), ("gain", "best", "optim", "depth", "perf")
REST = ("factor", "Model metrics", "System metrics")


def view() -> str:
    """The view as JSON: columns of the runs table, and charts with the losses first."""
    sections = [_section(name, shown=name in OPEN) for name in (*OPEN, *CLOSED, *REST)]
    charts = [_chart("val/loss", "val"), _chart("train/loss", "train")]
    state: dict[str, Any] = {
        "selectedColumns": list(COLUMNS),
        "compareRunSections": sections,
        "compareRunCharts": charts,
        "hideEmptyCharts": True,
    }
    return json.dumps(state, sort_keys=True)


def _section(name: str, *, shown: bool) -> dict[str, Any]:
    flags = {"isReordered": False, "deleted": False, "isGenerated": True}
    return {"uuid": f"attnres-{name}", "name": name, "display": shown, **flags}


def _chart(metric: str, section: str) -> dict[str, Any]:
    """A line over steps, as MLflow makes one for each metric with a history."""
    return {
        "uuid": f"attnres-chart-{metric}",
        "type": "LINE",
        "metricKey": metric,
        "displayName": metric.split("/")[-1],
        "metricSectionId": f"attnres-{section}",
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": True,
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
