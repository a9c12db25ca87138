"""Published comparisons with a baseline, from one CSV to one table and one forest plot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.gain.gain import compute_equivalent_gain
from attnres_lab.runs.looks import PAPER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT = ("source", "variant", "size", "unit", "seeds", "tuning", "limit")
NUMBERS: tuple[str, ...] = (
    "loss",
    "baseline",
    "difference",
    "gain",
    "low",
    "high",
    "error",
    "params",
    "tokens",
)
NUMBERS += ("throughput", "alpha")
UNITS = ("nats per token", "nats per byte", "perplexity", "")
AXES = ("FLOP", "second", "")
FEWEST_SIZES = 3  # with fewer a gain has no interval


def evidence_forest(path: str | Path) -> tuple[pd.DataFrame, Figure]:
    """The table of the CSV of published comparisons at ``path``, and its forest plot. Raises as
    ``evidence_table``.
    """
    table = evidence_table(path)
    return table, _forest(table)


def evidence_table(path: str | Path) -> pd.DataFrame:
    """What published losses, differences and gains say, one row for each statement.

    The CSV at ``path`` has a row per published number with the text columns ``source``,
    ``variant``, ``size``, ``unit`` (nats per token, nats per byte, perplexity, or empty: not
    stated), ``seeds``, ``tuning``, ``limit`` (what the number cannot show), ``axis`` (FLOP or
    second, of a gain), and one of:

    - ``loss`` and ``baseline``. With ``params`` and ``tokens`` in three sizes or more of a variant,
      its gain with a 95 % interval, C = 6 x params x tokens; with ``throughput`` (relative to the
      baseline's) also per second. Otherwise the difference, and where the row has an ``alpha``, the
      gain under that assumed exponent: (baseline / loss)^(1 / alpha), no interval.
    - ``difference``: loss less the baseline's, in nats.
    - ``gain``: as its source states it.

    The last two may have ``low`` and ``high``, the 95 % interval; ``error`` is a printed error of
    unstated kind, carried along and never made an interval.

    Returns source, variant, size, unit, seeds, tuning, measure ("gain per FLOP", "gain per second",
    "difference"), value, low, high, error, basis, limit. Raises ValueError, naming file and row.
    """
    rows = _read(Path(path))
    parts: list[dict[str, Any]] = []
    for _, group in rows.groupby(["source", "variant"], sort=False):
        losses = group[group["loss"].notna()]
        priced = losses[losses[["params", "tokens"]].notna().all(axis=1)]
        fitted = priced["size"].nunique() >= FEWEST_SIZES
        if fitted:
            try:
                parts += _fitted(priced)
            except ValueError as error:
                first = priced.iloc[0]
                name = f"{path}, {first['source']}, {first['variant']}"
                raise ValueError(f"{name}: {error}") from None
        left = group.drop(priced.index) if fitted else group
        for row in left.to_dict("records"):
            parts += _single({str(name): value for name, value in row.items()})
    return pd.DataFrame(parts)


def _read(path: Path) -> pd.DataFrame:
    raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [name for name in (*TEXT, "axis", *NUMBERS) if name not in raw]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; add it, empty where not known")
    if raw.empty:
        raise ValueError(f"{path}: no rows; give a row for each published number")
    for name in NUMBERS:
        values = pd.to_numeric(raw[name], errors="coerce")
        bad = (raw[name].str.strip() != "") & ~np.isfinite(values)
        if name not in ("difference", "low", "high"):
            bad |= values <= 0
        _refuse(path, raw, bad, name, "a number (above 0 unless it is a difference) or nothing")
        raw[name] = values
    for name, allowed in (("unit", UNITS), ("axis", AXES)):
        words = ", ".join(word for word in allowed if word)
        _refuse(path, raw, ~raw[name].isin(allowed), name, f"one of {words}, or nothing")
    for name in ("source", "variant", "limit"):
        _refuse(path, raw, raw[name].str.strip() == "", name, "filled in")
    stated = raw[["loss", "difference", "gain"]].notna().sum(axis=1)
    _refuse(path, raw, stated != 1, "loss", "filled in, or difference, or gain: exactly one")
    _refuse(path, raw, raw["loss"].notna() != raw["baseline"].notna(), "baseline", "beside a loss")
    _refuse(path, raw, raw["gain"].notna() & (raw["axis"] == ""), "axis", "given with a gain")
    _refuse(path, raw, raw["low"].notna() != raw["high"].notna(), "high", "given with low")
    value = raw["difference"].fillna(raw["gain"])
    outside = raw["low"].notna() & ~value.between(raw["low"], raw["high"])
    _refuse(path, raw, outside, "low", "at most the value, and high at least")
    nats = raw["unit"] == "perplexity"
    raw.loc[nats, ["loss", "baseline"]] = np.log(raw.loc[nats, ["loss", "baseline"]])
    raw.loc[nats, "unit"] = "nats per token"
    return raw


def _refuse(path: Path, raw: pd.DataFrame, bad: pd.Series, column: str, wanted: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        found = raw[column].iloc[row]
        raise ValueError(f"{path}, line {row + 2}: {column} must be {wanted}, found {found!r}")


def _fitted(group: pd.DataFrame) -> list[dict[str, Any]]:
    flops = 6 * group["params"] * group["tokens"]
    arms = [
        pd.DataFrame({"variant": "its baseline", "C": flops, "T": flops, "y": group["baseline"]}),
        pd.DataFrame(
            {"variant": "it", "C": flops, "T": flops / group["throughput"], "y": group["loss"]}
        ),
    ]
    labels: dict[str, Any] = {"size": group["size"], "seed": 0, "loss_unit": group["unit"]}
    runs = pd.concat([arm.assign(**labels) for arm in arms], ignore_index=True)
    axes = {"FLOP": "C"} | ({"second": "T"} if group["throughput"].notna().all() else {})
    first, last = group.iloc[0], group.iloc[-1]
    about = {name: first[name] for name in TEXT} | {"size": f"{first['size']} to {last['size']}"}
    found = []
    for axis, x in axes.items():
        gain = compute_equivalent_gain(runs, "it", x=x, y="y", baseline="its baseline")
        basis = f"fitted over {len(group)} sizes, equal exponents p = {gain.parallelism.p:.2g}"
        found.append(_row(about, f"gain per {axis}", (gain.gain, *gain.interval), basis))
    return found


def _single(row: dict[str, Any]) -> list[dict[str, Any]]:
    if not np.isnan(row["gain"]):
        return [_row(row, f"gain per {row['axis']}", _values(row, row["gain"]), "as stated")]
    if not np.isnan(row["difference"]):
        return [_row(row, "difference", _values(row, row["difference"]), "as stated")]
    bare = (row["loss"] - row["baseline"], np.nan, np.nan)
    found = [_row(row, "difference", bare, "of the two losses")]
    if not np.isnan(row["alpha"]):
        gain = (row["baseline"] / row["loss"]) ** (1 / row["alpha"])
        basis = f"exponent {row['alpha']:g} assumed, one size"
        found.append(_row(row, "gain per FLOP", (gain, np.nan, np.nan), basis))
    return found


def _values(row: dict[str, Any], value: float) -> tuple[float, float, float]:
    return value, row["low"], row["high"]


def _row(
    about: dict[str, Any], measure: str, values: tuple[float, float, float], basis: str
) -> dict[str, Any]:
    names = ("source", "variant", "size", "unit", "seeds", "tuning")
    numbers = dict(zip(("value", "low", "high"), values, strict=True))
    error = about.get("error", np.nan)
    row: dict[str, Any] = {name: about[name] for name in names} | {"measure": measure}
    return row | numbers | {"error": error, "basis": basis, "limit": about["limit"]}


def _look(variant: str) -> Any:
    """That of our variant of this name, however a source spells it and whatever follows a comma."""
    from analysis.plots.style import looks

    name = variant if variant in PAPER else variant.lower().split(",")[0]
    return looks([name])[name]


def _forest(table: pd.DataFrame) -> Figure:
    """Gains (logarithmic axis) and differences, a panel each, in the colours and markers of their
    variants; hollow where there is no interval.
    """
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    from analysis import plots

    kinds = ("gain per FLOP", "gain per second", "difference")
    panels = [(kind, table[table["measure"] == kind].iloc[::-1]) for kind in kinds]
    panels = [(kind, rows) for kind, rows in panels if len(rows)]
    heights = [len(rows) + 2 for _, rows in panels]
    with plt.rc_context(plots.PRINT):
        figure, axes = plt.subplots(
            len(panels), 1, figsize=(9, 0.2 * sum(heights)), squeeze=False,
            height_ratios=heights, layout="constrained",
        )  # fmt: skip
        for ax, (kind, rows) in zip(axes[:, 0], panels, strict=True):
            for place, (variant, value, low, high) in enumerate(
                rows[["variant", "value", "low", "high"]].itertuples(index=False)
            ):
                look, fill = _look(variant), "none" if np.isnan(low) else "full"
                ax.plot(value, place, look.marker, color=look.color, fillstyle=fill)
                ax.plot([low, high], [place, place], color=look.color)
            names = rows["source"] + ": " + rows["variant"] + ", " + rows["size"]
            ax.set_yticks(range(len(rows)), names, fontsize=7)
            ax.set_ylim(-0.7, len(rows) - 0.3)
            better = "left" if kind == "difference" else "right"
            unit = " in nats" if kind == "difference" else ""
            ax.axvline(0 if kind == "difference" else 1, color="black", linewidth=0.8)
            hollow = "; hollow: no interval" if rows["low"].isna().any() else ""
            ax.set_xlabel(f"{kind}{unit}: {better} is better{hollow}")
            if kind != "difference":
                ax.set_xscale("log", base=2)
                ax.xaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.25, 1.5)))
                ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return figure
