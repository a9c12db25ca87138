"""Ablation tables: every variant against a named baseline, by paired differences of loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from analysis.cells import Columns, finished_runs, missing_pairs
from analysis.fits.laws import Array
from analysis.gain.paired import ROUNDING
from analysis.noise import Noise, scatter, share_seeds, shared_noise
from analysis.tables import markdown, tex

ALPHA = 0.05
SHARED = (
    "sizes share seeds, and a seed may move a variant at all of them alike: each seed is one case; "
    "seeds of its own at each size give a narrower interval"
)
COLUMNS = ["variant", "pairs", "loss", "difference", "df", "low", "high", "p", "p_equivalent"]


@dataclass(frozen=True, eq=False)
class AblationTable:
    """Variants sorted by their loss difference to `baseline` (unit of `y`, negative is better), see
    `ablation_table`.

    `rows` columns: variant, pairs, loss (mean of the pairs), difference, low, high (95 %, one
    comparison), df, p, p_holm, p_equivalent, p_equivalent_holm, verdict: "better", "worse" (p_holm
    < .05), "equivalent" (p_equivalent_holm < .05), both, "undecided", or "one pair".
    """

    rows: pd.DataFrame
    baseline: object
    y: str
    margin: float
    pooled: bool
    warnings: tuple[str, ...]

    @property
    def caption(self) -> str:
        """What the numbers are, in one sentence."""
        comparisons = (
            f"p adjusted (Holm) for {self.rows['p'].count()} comparisons; equivalent: within "
            f"±{self.margin:g} by two one-sided tests; variance "
            f"{'pooled over variants' if self.pooled else 'of each variant alone'}"
        )
        return (
            f"Paired differences of {self.y} to {self.baseline} with 95 % Student intervals; "
            f"{comparisons}."
        )

    def to_markdown(self) -> str:
        """A pipe table under its caption, warnings below."""
        return "\n".join(
            [self.caption, "", markdown(self._shown()), *(f"Warning: {w}" for w in self.warnings)]
        ).rstrip()

    def to_latex(self) -> str:
        """A booktabs tabular in a table environment."""
        shown = self._shown()
        head, *body = (
            " & ".join(map(tex, cells)) + r" \\" for cells in ([*shown], *shown.to_numpy().tolist())
        )
        lines = [
            r"\begin{table}",
            rf"\caption{{{tex(self.caption)}}}",
            r"\begin{tabular}{lrrrrrrl}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
        ]
        return "\n".join(
            [
                *lines,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                *(f"% Warning: {w}" for w in self.warnings),
            ]
        )

    def to_html(self) -> str:
        """A table element under its caption, warnings below."""
        from html import escape

        notes = "".join(f"<p>Warning: {escape(w)}</p>" for w in self.warnings)
        return f"<p>{escape(self.caption)}</p>{self._shown().to_html(index=False, border=0)}{notes}"

    def _repr_html_(self) -> str:
        return self.to_html()

    def _shown(self) -> pd.DataFrame:
        """The rows as text."""

        def show(name: str, form: str) -> list[str]:
            return ["–" if np.isnan(value) else format(value, form) for value in self.rows[name]]

        limits = zip(show("low", "+.4f"), show("high", "+.4f"), strict=True)
        columns = {
            "variant": [str(v) for v in self.rows["variant"]],
            "pairs": [str(n) for n in self.rows["pairs"]],
        }
        columns |= {"loss": show("loss", ".4f"), "difference": show("difference", "+.4f")}
        columns |= {
            "95 % interval": ["–" if low == "–" else f"[{low}, {high}]" for low, high in limits],
            "p (Holm)": show("p_holm", ".2g"),
        }
        columns |= {
            "p equivalent (Holm)": show("p_equivalent_holm", ".2g"),
            "verdict": list(self.rows["verdict"]),
        }
        return pd.DataFrame(columns)


def ablation_table(  # noqa: PLR0913
    runs: pd.DataFrame,
    baseline: Any = "baseline",
    *,
    y: str = "val/loss",
    by: str = "variant",
    size: str = "size",
    seed: str = "seed",
    margin: float = 0.005,
) -> AblationTable:
    """Compare every variant in `runs` with `baseline` by differences of y, paired by seed and size
    (a table without `size` holds one).

    The mean is over sizes, each at the mean of its seeds. Its error comes from the seeds within
    sizes, so it speaks of these sizes: from the losses of all variants together, less the effects
    of variant and seed at each size (a two-way layout), unless a test finds that they scatter
    unequally (p < .05); then, with a warning, from each variant's own differences, which at 3 seeds
    finds little. Where sizes share seeds, a seed may favour a variant at all sizes alike: the cases
    are the seeds, over all sizes; seeds of its own at each size give more. With one seed per size
    it comes from the sizes; one pair gives none.

    p is two-sided, adjusted over the variants by Holm's method; "equivalent" is the two one-sided t
    tests (TOST) against ± `margin`, in units of y, adjusted likewise. The default, 0.005 nats, is
    about 5 % of compute at a loss of 1.8 and an exponent of 0.055. Raises ValueError as
    `compute_equivalent_gain`, and for a margin that is not above 0.
    """
    if not (np.isfinite(margin) and margin > 0):
        raise ValueError(f"margin must be finite and above 0, found {margin!r}")
    runs = runs if size in runs or size != "size" else runs.assign(size="all")
    variants = [v for v in runs[by].dropna().unique() if v != baseline] if by in runs else []
    finished, warnings = finished_runs(
        runs, Columns(None, y, by, size, seed), [baseline, *variants]
    )
    losses = {
        arm: rows.set_index(["size", "seed"])["y"]
        for arm, rows in finished.groupby("arm", observed=True)
    }
    if baseline not in losses:
        raise ValueError(f"no run of {baseline!r} finished with a loss")
    own = losses.pop(baseline)
    noise = shared_noise(finished)
    pooled = noise is not None and noise.p >= ALPHA
    if noise and not pooled:
        warnings.append(
            f"the variants scatter unequally (p = {noise.p:.2g}): each has its own "
            "variance, with few degrees of freedom"
        )
    if share_seeds(finished) and finished.groupby(["arm", "size"], observed=True).size().max() > 1:
        warnings.append(SHARED)
    rows = []
    for variant in (v for v in variants if v in losses):
        rows.append(_row(variant, losses[variant], own, margin, noise if pooled else None))
        warnings += missing_pairs({baseline: own.index, variant: losses[variant].index})
    warnings += [f"{v} has no finished run: left out" for v in variants if v not in losses]
    zero = {"pairs": len(own), "loss": _mean(own)[0], "difference": 0.0, "df": 0}
    table = pd.DataFrame([*rows, {"variant": baseline, **zero}])
    # where no variant has a pair, nothing has made the columns
    table = _judged(table.reindex(columns=COLUMNS).astype({"pairs": int, "df": int}), baseline)
    return AblationTable(table, baseline, y, margin, pooled, tuple(warnings))


def _judged(table: pd.DataFrame, baseline: Any) -> pd.DataFrame:
    """With adjusted p and verdicts, the lowest difference first."""
    for p in ("p", "p_equivalent"):
        table[f"{p}_holm"] = _holm(table[p].to_numpy())
    table["verdict"] = [
        "baseline" if v == baseline else _verdict(row)
        for v, (_, row) in zip(table["variant"], table.iterrows(), strict=True)
    ]
    return table.sort_values("difference", kind="stable", ignore_index=True)


def _row(
    variant: Any,
    losses: pd.Series[float],
    baseline: pd.Series[float],
    margin: float,
    noise: Noise | None,
) -> dict[str, Any]:
    """Mean paired difference, its t interval and raw p values; NaN where nothing can be said."""
    both = losses.index.intersection(baseline.index)
    if both.empty:
        return {"variant": variant, "pairs": 0, "df": 0}
    mean, se, df = _mean(losses[both] - baseline[both])
    repeats = losses[both].groupby(level="size", observed=True).size()
    if noise and (repeats > 1).any():
        se = float(np.sqrt(2 * noise.variance * np.sum(1 / repeats))) / len(repeats)
        df = noise.df
    half = float(stdtrit(df, 0.975)) * se if df else float("nan")
    p, p_equivalent = (
        float(stdtr(df, t)) if df else float("nan")
        for t in (-abs(mean) / se, (abs(mean) - margin) / se)
    )
    found = {
        "variant": variant,
        "pairs": len(both),
        "loss": _mean(losses[both])[0],
        "difference": mean,
        "df": df,
    }
    return found | {
        "low": mean - half,
        "high": mean + half,
        "p": 2 * p,
        "p_equivalent": p_equivalent,
    }


def _mean(values: pd.Series[float]) -> tuple[float, float, int]:
    """Mean over sizes of values by size and seed, its standard error and degrees of freedom (0: no
    error can be had).
    """
    by_size = values.groupby(level="size", observed=True).mean()
    variance, df = scatter(values.rename("y").reset_index().assign(arm=0))
    if df:
        runs = values.groupby(level="size", observed=True).size()
        variance *= float(np.sum(1 / runs)) / len(runs) ** 2
    else:
        df = len(by_size) - 1
        variance = float(by_size.var(ddof=1) / len(by_size)) if df else float("nan")
    return float(by_size.mean()), float(np.sqrt(max(variance, ROUNDING))), df


def _holm(p: Array) -> Array:
    """Holm's step-down adjustment of the p values that are there."""
    order = np.argsort(p)[: np.sum(~np.isnan(p))]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def _verdict(row: pd.Series[Any]) -> str:
    if not row["df"]:
        return "one pair" if row["pairs"] else "no pair"
    found = [("better" if row["difference"] < 0 else "worse")] if row["p_holm"] < ALPHA else []
    found += ["equivalent"] if row["p_equivalent_holm"] < ALPHA else []
    return ", ".join(found) or "undecided"
