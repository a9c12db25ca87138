"""A report: Markdown, and one HTML page that needs nothing else, opening with a plain-language
verdict.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.report import sections
from analysis.report.benchmarks import BENCHMARKS
from analysis.report.comparisons import COMPARISONS
from analysis.report.evidence import Evidence, gather
from analysis.report.gains import GAINS
from analysis.report.page import Page
from analysis.report.studies import STUDIES
from analysis.report.tuning import TUNING
from analysis.styles import current
from attnres_lab.runs import SweepFolder
from attnres_lab.runs.folder import write_json


def _numbers(evidence: Evidence) -> dict[str, dict[str, float]]:
    """The gains per FLOP with their 95 % limits, by variant; none where the sweep has no
    verdict.
    """
    found = evidence.gains_per("flops") if evidence.judged else {}
    return {
        variant: {"gain": gain.gain, "low": gain.interval[0], "high": gain.interval[1]}
        for variant, gain in found.items()
    }


@dataclass(frozen=True)
class Report:
    """Where a report lies, and its verdict as Markdown; each of the ``figures`` lies beside it as
    PDF too.
    """

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
    """Write ``report.md``, ``report.html``, the gains (``gains.json``) and the figures (PNG and
    PDF, in the style around the call) into the folder ``out``, made if need be.

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
    markdown, html = page.out / "report.md", page.out / SweepFolder("").page.name
    for stale in re.findall(
        r"^!\[.*\]\(([\w.-]+\.png)\)$", markdown.read_text() if markdown.exists() else "", re.M
    ):
        for file in (page.out / stale, (page.out / stale).with_suffix(".pdf")):
            file.unlink(missing_ok=True)
    verdict = sections.verdict(evidence)
    with current():
        page.add(f"# {evidence.name}", verdict)
        if evidence.question:
            page.add("## Question", evidence.question)
        for part in (*GAINS, *COMPARISONS, *BENCHMARKS, *TUNING, *STUDIES, *sections.SECTIONS):
            part(evidence, page)
    markdown.write_text(page.markdown())
    write_json(page.out / SweepFolder("").gains.name, _numbers(evidence))
    html.write_text(page.html(f"{evidence.name}: report"))
    return Report(verdict, markdown, html, tuple(page.figures))
