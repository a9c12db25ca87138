"""What a report rests on: the runs, the files of the sweep, and the choices made from them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.ablation import AblationTable, ablation_table
from analysis.checks import filled, numeric, states
from analysis.depth import DepthRecord, load_depth
from analysis.gain.gain import Gain, compute_equivalent_gain
from analysis.isoflop import IsoFlop, isoflop
from analysis.runs import depth_artifacts, of_kind, read_runs
from analysis.steps import priced
from attnres_lab.runs import DONE, SweepFolder
from attnres_lab.runs.folder import read_json

BASELINE, LOSS, ACCURACY = "baseline", "val/loss", "val/accuracy"
AXES = ("flops", "seconds", "device_seconds")
# sizes within this factor of x are one budget: a slope over them is not the effect of compute
NARROW = 1.5
# differ without changing what is learned, or are the variant itself
_NO_FACTORS = ("name", "data.cache_dir", "model.residual")


@dataclass(frozen=True)
class Evidence:
    """A sweep's runs; ``source`` is what ``load_runs`` took, ``folder`` the sweep's folder,
    ``spec`` its YAML, both where they exist; ``words`` is what follows ``attnres sweep run``.
    """

    source: str
    runs: pd.DataFrame
    folder: Path | None
    spec: Path | None
    tracking_uri: str | None
    words: str = ""
    timed: str = ""  # how the seconds were measured; empty: by the clocks of the runs
    tuning: pd.DataFrame = field(default_factory=pd.DataFrame)  # runs that only chose its values

    @property
    def name(self) -> str:
        """The sweep, the experiment, or the table's file without its folder."""
        path = Path(self.source)
        return path.stem if path.suffix in (".csv", ".parquet", ".json") else self.source

    @cached_property
    def done(self) -> pd.DataFrame:
        """Finished runs with a finite loss; sizes in the order of their compute, or of their
        parameters where all have about the same; of falling loss where neither is known.
        """
        runs = self.runs[self.runs["status"] == "finished"] if "status" in self.runs else self.runs
        runs = runs[np.isfinite(runs["val/loss"])]
        sizes = runs.groupby("size")
        mean = (
            sizes["flops"].transform("mean") if "flops" in runs else -sizes[LOSS].transform("mean")
        )
        same = "flops" not in runs or mean.max() < 1.1 * mean.min()
        if same and "params" in runs:
            mean = sizes["params"].transform("mean")
        ordered: pd.DataFrame = runs.iloc[np.argsort(mean.to_numpy(), kind="stable")]
        return ordered

    @property
    def rate(self) -> str:
        """The key that ``tune`` of the sweep's YAML finds a value of for each cell, or empty."""
        named = (self._yaml.get("tune") or {}).get("key")
        return named if isinstance(named, str) else ""

    @property
    def goal(self) -> str:
        """The metric by which ``tune`` of the sweep's YAML chose."""
        objective = self._yaml.get("objective") or {}
        first = objective[0] if isinstance(objective, list) else objective
        return str(first.get("metric", LOSS))

    @cached_property
    def factors(self) -> list[str]:
        """Config keys that vary beyond variant, size and seed; what is tuned follows from them."""
        found = _varying(self.done, ["variant", "size", "seed"])
        return [key for key in found if key not in (*_NO_FACTORS, self.rate)]

    @property
    def tuned(self) -> list[str]:
        """The factors of which each variant and size may have its own best value; a budget is none,
        for more is always better.
        """
        return [key for key in self.factors if key != "budget"]

    @cached_property
    def given(self) -> list[str]:
        """Settings that differ between the variants of a size, beyond the residual connection and
        what was tuned: each variant was given its own.
        """
        without = (*self.tuned, *_NO_FACTORS, "budget")
        found = _varying(self.chosen, ["size", "seed"])
        return [k for k in found if k not in without and not k.startswith("model.residual")]

    @cached_property
    def chosen(self) -> pd.DataFrame:
        """One run per variant, size, seed and budget: where other factors vary, at the setting with
        the lowest mean loss over the seeds.
        """
        if not self.tuned:
            return self.done
        cell = ["variant", "size", *(key for key in self.factors if key not in self.tuned)]
        settings = self.done.groupby([*cell, *self.tuned], dropna=False)["val/loss"].transform(
            "mean"
        )
        best = settings.groupby([self.done[key] for key in cell]).transform("min")
        return self.done[settings == best].drop_duplicates([*cell, "seed"])

    @cached_property
    def isoflop(self) -> dict[str, IsoFlop]:
        """The study of each variant where the budget of FLOPs varies at equal size; empty for other
        sweeps. Raises as ``isoflop``.
        """
        budgets = self.done["budget"] if "budget" in self.factors else pd.Series(["none"])
        return isoflop(self.chosen) if budgets.astype(str).str.endswith(" flops").all() else {}

    @cached_property
    def comparable(self) -> pd.DataFrame:
        """What gains are taken from, failures included where nothing was chosen; for an IsoFLOP
        study the lowest losses, by budget.
        """
        if self.isoflop:
            rows = [
                (variant, f"{valley.budget:.2g} FLOP", 0, valley.budget, valley.loss)
                for variant, study in self.isoflop.items()
                for valley in study.valleys
                if valley.best.inside
            ]
            return pd.DataFrame(rows, columns=["variant", "size", "seed", "flops", "val/loss"])
        return self.chosen if self.tuned else self.runs

    @cached_property
    def ablation(self) -> AblationTable | None:
        """Every variant against the baseline, where there is one and something to compare with
        it.
        """
        compared = BASELINE in set(self.done["variant"]) and self.variants
        return ablation_table(self.comparable) if compared else None

    @property
    def held_equal(self) -> str:
        """At what the ablation compares losses, and whether that charges a variant's extra FLOP."""
        if self.isoflop:
            return "an equal budget of FLOP"
        cells = self.chosen.groupby(["size", *(["budget"] if "budget" in self.factors else [])])
        if "tokens" in self.chosen and (cells["tokens"].nunique() > 1).any():
            return "equal size and budget, where variants saw different numbers of tokens"
        return "equal size and steps, without charging a variant's extra FLOP"

    @cached_property
    def gains(self) -> dict[str, dict[str, Gain | str]]:
        """By variant and x axis: the gain, or why there is none to be quoted."""
        found: dict[str, dict[str, Gain | str]] = {variant: {} for variant in self.variants}
        table = self.comparable
        axes = [x for x in AXES if x in table]
        if {"seconds", "device_seconds"} <= set(axes) and bool(
            self.timed or np.allclose(table["seconds"], table["device_seconds"], equal_nan=True)
        ):
            axes.remove("device_seconds")  # one device a run: the same gain again
        for variant, by_x in found.items():
            for x in axes:
                try:
                    gain = compute_equivalent_gain(table, variant, BASELINE, x=x)
                    span = gain.per_size["x_baseline"].max() / gain.per_size["x_baseline"].min()
                    by_x[x] = _unfit(gain, span) or gain
                except ValueError as error:
                    by_x[x] = str(error)
        return found

    def gains_per(self, x: str) -> dict[str, Gain]:
        """The gains on one axis, by variant, of the variants that have one per FLOP."""
        return {
            v: g
            for v, by_x in self.gains.items()
            if isinstance(g := by_x.get(x), Gain) and isinstance(by_x.get("flops"), Gain)
        }

    @property
    def variants(self) -> list[str]:
        """Variants that have a result, without the baseline."""
        return sorted(set(self.done["variant"]) - {BASELINE})

    @property
    def sizes(self) -> list[str]:
        """Sizes that have a result, the smallest first."""
        return list(self.done["size"].unique())

    @property
    def unfinished(self) -> str:
        """How many planned trials have not come to an end, by the sweep's folder; empty where none
        has not.
        """
        done = sum(state in DONE for state, *_ in self._planned)
        left = len(self._planned) - done
        return f"{done} of {len(self._planned)} trials: {left} are still to run." if left else ""

    @cached_property
    def _planned(self) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
        """State, environment and result of the sweep's plan, and of no others that lie beside it,
        by their names.
        """
        sweep = SweepFolder(self.folder) if self.folder else None
        runs = [sweep.trial(entry.hash) for entry in sweep.plan()] if sweep else []
        return [
            (run.status().state, read_json(run.environment) or {}, read_json(run.result) or {})
            for run in sorted(runs, key=lambda run: run.path)
        ]

    @property
    def question(self) -> str:
        """``question`` of the sweep's YAML."""
        return str(self._yaml.get("question", ""))

    @property
    def judged(self) -> bool:
        """Whether the sweep's YAML holds it long enough for a verdict."""
        return self._yaml.get("verdict", True) is not False

    @cached_property
    def _yaml(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(self.spec.read_text()) if self.spec else {}
        return found

    @cached_property
    def environments(self) -> list[dict[str, Any]]:
        """``environment.json`` of the planned trials."""
        return [environment for _, environment, _ in self._planned if environment]

    @cached_property
    def passes(self) -> list[tuple[float, int]]:
        """Passes of each finished planned trial over its own corpus, and the tokens of that, where
        both are known.
        """
        found = []
        for state, environment, result in self._planned:
            corpus, seen = environment.get("train_tokens"), result.get("tokens")
            if corpus and seen and state == "finished":
                found.append((float(seen) / corpus, int(corpus)))
        return found

    @cached_property
    def depth(self) -> dict[str, DepthRecord]:
        """The last depth record of each variant at the largest size that has one, of its lowest
        seed.
        """
        found: dict[str, DepthRecord] = {}
        for variant, runs in self.chosen.groupby("variant"):
            largest = runs[runs["size"] == runs["size"].iloc[-1]]
            for _, run in largest.sort_values("seed").iterrows():
                if records := self._records(run):
                    found[str(variant)] = records[-1]
                    break
        return found

    def _records(self, run: pd.Series[Any]) -> list[DepthRecord]:
        trial = self.folder and SweepFolder(self.folder).trial(str(run.get("trial"))).path
        if trial and trial.is_dir():
            return load_depth(trial)
        if "run_id" not in run:
            return []
        with tempfile.TemporaryDirectory() as folder:
            records = depth_artifacts(run["run_id"], Path(folder), self.tracking_uri)
            return load_depth(records) if records else []


def gather(
    source: str | Path, spec: Path | None, folder: Path | None, tracking_uri: str | None
) -> Evidence:
    """Read everything. Raises as ``load_runs``, and ValueError for missing columns and where no run
    has a result.
    """
    default = SweepFolder.named(str(source)).path
    folder = folder or (default if default.is_dir() else None)
    everything = read_runs(source, tracking_uri)
    runs, timed = priced(of_kind(everything, tuning=False), folder)
    none = (
        f"{source}: none of its {len(runs)} runs has finished with a loss; there is nothing to "
        "report yet: attnres sweep status says how far they are, attnres sweep run goes on"
    )
    if "status" in runs:
        runs = runs.assign(status=states(runs).replace("", "finished"))
        if not (runs["status"] == "finished").any():
            raise ValueError(none)
    if missing := {"variant", "size", "val/loss"} - set(runs):
        raise ValueError(
            f"{source}: no column {', '.join(sorted(missing))}; a report needs variant, size and "
            "val/loss: rename the columns that are called otherwise"
        )
    runs = numeric(runs if "seed" in runs else runs.assign(seed=0), [LOSS])
    labels = {name: runs[name].map(str, na_action="ignore") for name in ("variant", "size")}
    runs = runs.assign(**labels)  # a width in a table of one's own is a number
    tuning = of_kind(everything, tuning=True)
    evidence = Evidence(str(source), runs, folder, spec, tracking_uri, timed=timed, tuning=tuning)
    if evidence.done.empty:
        raise ValueError(none)
    filled(evidence.done, ("variant", "size", "seed"))
    return evidence


def _varying(runs: pd.DataFrame, within: list[str]) -> list[str]:
    """Config keys, and ``budget``, that vary among runs of one cell, equal ``within``."""
    keys = [key for key in map(str, runs) if ("." in key or key == "budget") and "/" not in key]
    cells = runs.groupby(within)
    return [key for key in keys if (cells[key].nunique(dropna=False) > 1).any()]


def _unfit(gain: Gain, span: float) -> str:
    """Why a gain must not be quoted; empty where it may be. `span`: largest x over the smallest."""
    if span < NARROW:
        return f"the sizes span only a factor {span:.2g} in {gain.x}, which shows no law"
    if not np.isfinite(gain.fieller[1]):
        return f"the exponent in {gain.x} cannot be told from 0, so the gain is not identified"
    return ""
