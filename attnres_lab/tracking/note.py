"""The note of a sweep's parent run: a Markdown page of what was planned, how far it is, and what
came out.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

LIMIT = 7900  # characters; MLflow cuts a tag at 8000


def markdown(name: str, summary: Mapping[str, str], trials: Sequence[Mapping[str, Any]]) -> str:
    """The page. A trial has ``variant``, ``size``, ``seed``, ``state`` and ``result`` (None until
    it ended).
    """
    counts = Counter(trial["state"] for trial in trials)
    done = sum(trial["result"] is not None for trial in trials)
    progress = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    lines = [
        f"# {plain(name)}",
        "",
        f"{done} of {len(trials)} trials have a result ({progress}).",
        "",
    ]
    lines += [f"**{plain(key)}:** {plain(text)}\n" for key, text in summary.items()]
    page = "\n".join(lines + ablation(trials))
    if len(page) > LIMIT:
        page = page[: LIMIT - 40].rpartition("\n")[0]
        page += ("\n```" if page.count("```") % 2 else "") + "\n\n(the rest is in the report)"
    return page


def plain(text: str) -> str:
    """``text`` as Markdown that shows it as it is: no picture, link, HTML or column of a table."""
    return re.sub(r"([\[\]<>`|\\])", r"\\\1", " ".join(text.split()))


def paragraph(page: str) -> str:
    """The first paragraph of text of a report, without the marks of a quotation."""
    for part in page.split("\n\n"):
        lines = (re.sub(r"^>\s?", "", line) for line in part.strip().splitlines())
        text = " ".join(line for line in lines if line)
        if text and not text.startswith(("#", "!", "|")):
            return text
    return ""


def ablation(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Mean validation loss over the seeds of finished trials per size and variant, with the
    difference to the baseline of that size; a line instead where another axis varies too, over
    which no mean is taken. As text in columns: MLflow gives a table neither lines nor space, and
    takes whatever would give it some out of the page.
    """
    losses: dict[tuple[str, str], list[float]] = defaultdict(list)
    points: dict[tuple[str, str], set[str]] = defaultdict(set)
    for trial in trials:
        if trial["state"] != "finished" or trial.get("tuning"):
            continue
        loss = (trial["result"] or {}).get("val/loss")
        if isinstance(loss, int | float):
            losses[trial["size"], trial["variant"]].append(loss)
            points[trial["size"], trial["variant"]].add(trial.get("point", ""))
    if not losses:
        return []
    if max(map(len, points.values())) > 1:
        return [
            "",
            "Size and variant are not all that varies: trials.csv and the report have the losses.",
        ]
    rows: list[tuple[str, ...]] = [("size", "variant", "runs", "val/loss, mean", "to baseline")]
    order = list(dict.fromkeys((trial["size"], trial["variant"]) for trial in trials))
    for size, variant in order:
        if values := losses.get((size, variant)):
            base = losses.get((size, "baseline"))
            change = (
                f"{statistics.mean(values) - statistics.mean(base):+.4f}"
                if base and variant != "baseline"
                else ""
            )
            mean = f"{statistics.mean(values):.4f}"
            names = [" ".join(name.replace("`", "'").split()) for name in (size, variant)]
            rows.append((*names, str(len(values)), mean, change))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return ["", "```", lines[0], "─" * max(map(len, lines)), *lines[1:], "```"]
