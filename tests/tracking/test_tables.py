"""The folders' table and the store's are one: every value that a folder holds comes back from
MLflow as it is in the folder, also where MLflow's own limits are passed.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tracking_helpers import OLD_LOADER, write_run

from analysis.runs import load_runs
from attnres_lab.runs import Entry, SweepFolder
from attnres_lab.runs.files import read_json, write_json
from attnres_lab.tracking import rebuild, tracking_uri

pytestmark = pytest.mark.filterwarnings(OLD_LOADER)

KEYS = st.text("abz_x.=ö 2", min_size=1, max_size=8).map(lambda text: f"model.{text}")
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats()
    | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=9)
    | st.sampled_from(["null", "true", "1e3", "nan", "[1]"])
    | st.text("ä€x'\n", min_size=1, max_size=2).map(lambda text: text * 6001)
    | st.lists(st.floats(0, 1), max_size=3)
)
NUMBERS = st.dictionaries(
    st.sampled_from(["val/loss", "val/bpb", "flops", "a=b", "perf/x"]),
    # MLflow's infinity is a number near the largest, which is taken for it
    st.floats(-1e300, 1e300, allow_subnormal=False) | st.sampled_from([np.inf, -np.inf, np.nan]),
)
COUNT = itertools.count()


@settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(configs=st.lists(st.dictionaries(KEYS, VALUES, max_size=6), min_size=2, max_size=2),
       numbers=NUMBERS)  # fmt: skip
def test_the_folders_and_the_store_hold_one_table(runs, configs, numbers) -> None:
    name = f"quick{next(COUNT)}"
    sweep = SweepFolder.named(name)
    entries = [
        Entry(f"t{i}", "p", {"model.residual": {"name": "full"}}, "full", "d32-L8", i,
              f"full-s{i}", 12345, 1e9, 40000)
        for i in range(3)
    ]  # fmt: skip
    sweep.path.mkdir(parents=True)
    for entry, config in zip(entries[:2], configs, strict=True):
        files = write_run(sweep.trial(entry.hash).path, seed=entry.seed)
        environment = read_json(files.environment) or {}
        write_json(files.environment, environment | {"config": environment["config"] | config})
        write_json(files.result, {**numbers, "tokens": 5000, "step": 50})
        files.metrics.unlink()  # whose rows would be of another run
    sweep.write_plan(entries)
    list(rebuild(sweep.path))
    ours, theirs = (load_runs(name, uri).set_index("trial") for uri in (None, tracking_uri()))
    ours = ours.drop(columns="run_id").replace([np.inf, -np.inf], np.nan).dropna(axis=1, how="all")
    theirs = theirs.loc[ours.index]
    for column in ours:
        pd.testing.assert_series_equal(ours[column], theirs[column], check_dtype=False)
