"""What a report says in words: the verdict with its conditions first; warnings, plan, cost,
environment and commands last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.gain.gain import Gain
from analysis.gain.words import direction
from analysis.report.evidence import BASELINE, Evidence
from analysis.report.page import Page
from analysis.tables import markdown
from attnres_lab.runs.secrets import redact_settings

COSTS = {  # column to (heading, unit, how runs add up)
    "flops": ("training FLOP", 1.0, "sum"),
    "tokens": ("tokens", 1.0, "sum"),
    "device_seconds": ("device-hours", 3600.0, "sum"),
    "peak_memory_bytes": ("peak memory (GB)", 1e9, "max"),
}

TABLES = (".csv", ".parquet", ".json")

SPEEDS = {
    "perf/step_seconds": "step (s)",
    "perf/tokens_per_second": "tokens / s",
    "perf/flops_per_second": "FLOP / s",
}

# of the run, not of where it ran
IDENTITY = (
    "seed",
    "variant",
    "size",
    "run_name",
    "config_hash",
    "started",
    "params",
    "params_total",
)


def verdict(evidence: Evidence) -> str:
    """What was found, in plain words, with its conditions; what the evidence cannot say comes with
    it.
    """
    lines = [evidence.unfinished] if evidence.unfinished else []
    if not evidence.judged:
        lines += ["No verdict: the sweep's own file says that it trains too little for one."]
        return "\n>\n".join(f"> {line}" for line in [*lines, _conditions(evidence)])
    lines += [gain.summary().split("\n", 1)[0] for gain in evidence.gains_per("flops").values()]
    lines += _two_questions(evidence)
    if timed := evidence.gains_per("seconds"):
        found = [
            f"{variant} {gain.gain:.2f} ({gain.interval[0]:.2f} to {gain.interval[1]:.2f})"
            for variant, gain in timed.items()
        ]
        lines += [
            f"In training time, not FLOP, the gain is: {', '.join(found)} ({_clock(evidence)})."
        ]
    refused = {
        variant: why
        for variant, by_x in evidence.gains.items()
        if isinstance(why := by_x.get("flops"), str)
    }
    if BASELINE not in set(evidence.done["variant"]):
        lines += [
            f"There is no finished run of the {BASELINE}, so nothing can be compared: the arm that "
            f"the others are held against must be called {BASELINE!r}."
        ]
    else:
        for why in dict.fromkeys(refused.values()):
            names = ", ".join(variant for variant, reason in refused.items() if reason == why)
            lines += [f"The evidence is too thin for a compute-equivalent gain of {names}: {why}."]
    if not evidence.gains_per("flops") and evidence.ablation:
        lines += [
            _difference(row)
            for row in evidence.ablation.rows.to_dict("records")
            if row["variant"] != BASELINE
        ]
    return "\n>\n".join(f"> {line}" for line in [*lines, _conditions(evidence)])


def _clock(evidence: Evidence) -> str:
    """Where the seconds are from."""
    if _own_table(evidence):
        return "by the seconds of the table"
    return evidence.timed or (
        "by the clocks of trials that shared a machine or may have; after `attnres bench sweep "
        f"{evidence.name}` by steps timed in turn"
    )


def _own_table(evidence: Evidence) -> bool:
    """Whether all that is known is a table, which any program may have written."""
    is_file = Path(evidence.source).suffix in TABLES
    return is_file and not evidence.spec and not evidence.folder


def _two_questions(evidence: Evidence) -> list[str]:
    """Why gain and ablation may differ, with the ablation's answers that do."""
    rows = evidence.ablation.rows.to_dict("records") if evidence.ablation else []
    gains, found = evidence.gains_per("flops"), list[str]()
    for row in rows:
        variant, verdict = row["variant"], row["verdict"]
        word = next((w for w in ("better", "worse") if w in verdict), "not shown to differ")
        if variant in gains and not pd.isna(row["p_holm"]) and word != direction(gains[variant]):
            p = f"Holm p = {row['p_holm']:.2g}"
            found.append(f"{variant} is {word} ({row['difference']:+.4f} nats, {p})")
    if not found:
        return []
    return [
        "Two questions have two answers. The gain says how much compute a variant is worth; the "
        f"ablation says whether its loss is lower at {evidence.held_equal}: there "
        f"{'; '.join(found)}."
    ]


def _difference(row: dict[Any, Any]) -> str:
    """One variant of the ablation table in words."""
    if not row["pairs"]:
        return f"{row['variant']}: no run has the size and seed of one of the {BASELINE}."
    if pd.isna(row["p_holm"]):
        return (
            f"{row['variant']}: {row['difference']:+.4f} nats in {row['pairs']} pair; nothing can "
            "be said without more seeds."
        )
    found = "no difference is shown" if row["verdict"] == "undecided" else row["verdict"]
    interval = (
        f"95 % interval {row['low']:+.4f} to {row['high']:+.4f}, {row['pairs']} pairs, Holm p = "
        f"{row['p_holm']:.2g}"
    )
    return f"{row['variant']}: {found}, {row['difference']:+.4f} nats ({interval})."


def _conditions(evidence: Evidence) -> str:
    """Under which circumstances the verdict was found."""
    done, sizes = evidence.done, evidence.sizes
    names = ", ".join(sizes) if len(sizes) <= 8 else f"{sizes[0]} to {sizes[-1]}"
    parts = [f"{len(done)} runs, {_count(len(sizes), 'size')} ({names}), {_seeds(done)}"]
    if "flops" in done:
        parts += [f"{done['flops'].min():.2g} to {done['flops'].max():.2g} FLOP per run"]
    if evidence.passes:
        passes, corpus = max(evidence.passes)
        parts += [f"at most {passes:.2g} passes over the {corpus:,} training tokens"]
    if evidence.tuned:
        parts += [f"each variant at its own best {', '.join(evidence.tuned)} of those tried"]
    if evidence.given:
        parts += [f"each variant at {', '.join(evidence.given)} of its own"]
    if not any("." in str(key) and "/" not in str(key) for key in done):
        parts += ["settings are not in the table"]
        return f"Conditions: {'; '.join(parts)}. Nothing is claimed beyond them."
    others = "the other settings" if evidence.given else "all settings but the residual connection"
    parts += [] if evidence.tuned else [f"{others} shared"]
    return f"Conditions: {'; '.join(parts)}. Nothing is claimed beyond them."


def _seeds(done: pd.DataFrame) -> str:
    """How many, and whether every size has its own."""
    each = done.groupby("size")["seed"].nunique()
    if len(each) == 1 or (done.groupby("seed")["size"].nunique() > 1).any():
        return _count(done["seed"].nunique(), "seed")
    least, most = each.min(), each.max()
    return f"{f'{least} to ' * bool(least < most)}{_count(most, 'seed')} of its own at each size"


def _warnings(evidence: Evidence, page: Page) -> None:
    """Everything that weakens the verdict."""
    gains = [
        gain for by_x in evidence.gains.values() for gain in by_x.values() if isinstance(gain, Gain)
    ]
    found = [
        f"{gain.variant}, per {gain.x}: {warning}" for gain in gains for warning in gain.warnings
    ]
    if (
        "status" in evidence.runs
        and (lost := evidence.runs[evidence.runs["status"] != "finished"]).shape[0]
    ):
        counts = lost.groupby(["status", "variant"]).size().reset_index(name="count")
        found += [
            f"{_count(n, f'{status} run')} of {variant}"
            for status, variant, n in counts.itertuples(index=False)
        ]
    if "imported" in evidence.runs:
        found += [
            f"{_count(n, 'run')} of {len(evidence.runs)} taken from {table}, not made here: no "
            "curves and no depth records of them"
            for table, n in evidence.runs["imported"].value_counts().items()
        ]
    if evidence.done["seed"].nunique() == 1:
        found += ["one seed: noise and effect cannot be told apart within a size"]
    for key in evidence.tuned:
        found += _edges(evidence, key)
    for key, what in (
        ("dirty", "uncommitted changes in the code"),
        ("revision", "several revisions of the code"),
        ("device", "several devices"),
    ):
        values = {str(e.get(key)) for e in evidence.environments}
        if "True" in values if key == "dirty" else len(values) > 1:
            found += [
                f"runs were made with {what}"
                + ("" if key == "dirty" else f": {', '.join(sorted(values))}")
            ]
    page.add("## Warnings")
    page.bullets(dict.fromkeys(found) or ["None."])


def _edges(evidence: Evidence, key: str) -> list[str]:
    """Best values on the edge of what was tried: the optimum may lie outside."""
    tried, best = evidence.done[key], evidence.chosen
    if not pd.api.types.is_numeric_dtype(tried) or tried.nunique() < 2:
        return []
    edge = best[np.isin(best[key], [tried.min(), tried.max()])].drop_duplicates(["variant", "size"])
    places = {
        str(v): [f"{size} ({value:g})" for size, value in zip(rows["size"], rows[key], strict=True)]
        for v, rows in edge.groupby("variant")
    }
    return [
        f"{key}: the best value of {variant} is on the edge of those tried at {', '.join(cells)}"
        for variant, cells in places.items()
    ]


def _plan(evidence: Evidence, page: Page) -> None:
    """What became of the runs, and the sweep's YAML."""
    states = (
        evidence.runs["status"].value_counts()
        if "status" in evidence.runs
        else pd.Series({"in the table": len(evidence.runs)})
    )
    page.add(
        "## Plan", f"Runs: {', '.join(f'{count} {state}' for state, count in states.items())}."
    )
    if evidence.spec:
        page.add(f"```yaml\n{redact_settings(evidence.spec.read_text()).rstrip()}\n```")


def _cost(evidence: Evidence, page: Page) -> None:
    """What the runs took, those that came to nothing included; speed at the largest size, beside
    the baseline's.
    """
    columns = {key: value for key, value in COSTS.items() if key in evidence.runs}
    parts = [*evidence.runs.groupby("variant"), ("all", evidence.runs)]
    rows = [
        {"variant": v, "runs": len(r)}
        | {head: r[key].agg(how) / unit for key, (head, unit, how) in columns.items()}
        for v, r in parts
    ]
    page.add("## Cost", markdown(pd.DataFrame(rows)))
    largest = evidence.done[evidence.done["size"] == evidence.sizes[-1]]
    if set(SPEEDS) <= set(largest):
        speed = largest.groupby("variant")[list(SPEEDS)].median().rename(columns=SPEEDS)
        if BASELINE in speed.index:
            speed["step / baseline"] = speed["step (s)"] / speed["step (s)"].to_dict()[BASELINE]
        note = (
            f"Speed at {evidence.sizes[-1]}, median over runs by their own clocks; comparable only "
            f"where the runs had their machine to themselves. Seconds of the gain: "
            f"{_clock(evidence)}."
        )
        page.add(note, markdown(speed.reset_index()))


def _environment(evidence: Evidence, page: Page) -> None:
    """Every recorded key, with all of its values where runs differ."""
    flat = pd.json_normalize([{**e, "config": None} for e in evidence.environments])
    rows = []
    for key in (key for key in flat if key not in (*IDENTITY, "config")):
        values = sorted({str(v) for v in flat[key].astype(object).fillna("not recorded")})
        rows.append(
            {
                "": key,
                "value": ", ".join(values[:3])
                + (f" and {len(values) - 3} more" if len(values) > 3 else ""),
            }
        )
    page.add(
        "## Environment",
        markdown(pd.DataFrame(rows)) if rows else "Not recorded beside these runs.",
    )


def _reproduce(evidence: Evidence, page: Page) -> None:
    """The commands."""
    if _own_table(evidence):
        page.add("## How to reproduce", "How the runs of this table were made is not known here.")
        return
    revisions = sorted({str(e["revision"]) for e in evidence.environments if e.get("revision")})
    words = evidence.words or f"sweeps/{evidence.name}.yaml"
    checkout = [f"git checkout {revisions[0]}"] if len(revisions) == 1 else []
    lines = "\n".join([*checkout, f"attnres sweep run {words}", f"attnres report {words}"])
    page.add(
        "## How to reproduce",
        f"```sh\n{lines}\n```",
        "The same seed gives the same initial weights and the same batches to every variant.",
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


SECTIONS = (_warnings, _plan, _cost, _environment, _reproduce)
