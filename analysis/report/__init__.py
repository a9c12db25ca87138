"""A report: Markdown, and one HTML page that needs nothing else, opening with a plain-language
verdict.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib import rc_context

from analysis.plots import PRINT
from analysis.report import sections
from analysis.report.benchmarks import BENCHMARKS
from analysis.report.comparisons import COMPARISONS
from analysis.report.evidence import gather
from analysis.report.page import Page
from analysis.report.shapes import SHAPES
from analysis.report.tuning import TUNING


@dataclass(frozen=True)
class Report:
    """Where a report lies, and its verdict as Markdown."""

    verdict: str
    markdown: Path
    html: Path
    figures: tuple[Path, ...]


def write_report(
    source: str | Path,
    out: str | Path,
    *,
    spec: Path | None = None,
    folder: Path | None = None,
    words: str = "",
    tracking_uri: str | None = None,
) -> Report:
    """Write ``report.md``, ``report.html`` and the figures (PNG) into the folder ``out``, made if
    need be.

    ``source``: what ``load_runs`` takes: a sweep, an experiment, a CSV or Parquet file. ``spec``:
    the sweep's YAML, for the question and the plan. ``folder``: the sweep's folder, for
    environments and depth records; by default where the sweep of that name lies. ``words``: what
    follows ``attnres sweep run``, to reproduce.

    Raises ValueError, in one line, where there is nothing to report on; a comparison that the
    evidence does not carry is said so in the verdict.
    """
    evidence = replace(gather(source, spec, folder, tracking_uri), words=words)
    page = Page(Path(out))
    page.out.mkdir(parents=True, exist_ok=True)
    markdown, html = page.out / "report.md", page.out / "report.html"
    for stale in re.findall(
        r"^!\[.*\]\(([\w.-]+\.png)\)$", markdown.read_text() if markdown.exists() else "", re.M
    ):
        (page.out / stale).unlink(missing_ok=True)
    verdict = sections.verdict(evidence)
    with rc_context(PRINT):
        page.add(f"# {evidence.name}", verdict)
        if evidence.question:
            page.add("## Question", evidence.question)
        for part in (*COMPARISONS, *BENCHMARKS, *TUNING, *SHAPES, *sections.SECTIONS):
            part(evidence, page)
    markdown.write_text(page.markdown())
    html.write_text(page.html(f"{evidence.name}: report"))
    return Report(verdict, markdown, html, tuple(page.figures))
