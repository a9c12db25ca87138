"""A report in the making as Markdown, and the same as one HTML page that holds its figures."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1a1a1a; --page: #fff; --line: #ddd; --soft: #f6f6f6;
  --mark: #0072b2; --quote: #f2f7fb; }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #e4e4e4; --page: #16181b; --line: #3a3e44;
  --soft: #22262b; --mark: #56b4e9; --quote: #1b2731; }} }}
body {{ max-width: 56rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--page); }}
h1, h2 {{ line-height: 1.2; }} h2 {{ margin-top: 2.2rem; border-bottom: 1px solid var(--line); }}
a {{ color: var(--mark); }} nav ul {{ columns: 15rem; }}
blockquote {{ margin: 1rem 0; padding: .4rem 1rem; border-left: .3rem solid var(--mark);
  background: var(--quote); font-size: 1.08rem; }}
table {{ border-collapse: collapse; display: block; max-width: 100%; overflow-x: auto;
  font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  white-space: nowrap; }} th {{ background: var(--soft); white-space: normal; }}
img {{ max-width: 100%; background: #fff; }}
pre {{ background: var(--soft); padding: .7rem; overflow-x: auto; font-size: .85rem; }}
@media (max-width: 40rem) {{ body {{ margin: 1rem auto; overflow-wrap: anywhere; }}
  p:has(> img) {{ overflow-x: auto; }} img {{ max-width: none; width: max(100%, 36rem); }}
  th, td {{ padding: .2rem .4rem; }} }}
@media print {{ :root {{ color-scheme: light; --text: #000; --page: #fff; --line: #ddd;
  --soft: #f6f6f6; --quote: #f2f7fb; }} body {{ margin: 0; max-width: none; }}
  h2 {{ break-after: avoid; }} img, table {{ break-inside: avoid; }}
  td {{ white-space: normal; }} pre {{ white-space: pre-wrap; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


class Page:
    """Paragraphs of Markdown, and figures in the folder ``out``."""

    def __init__(self, out: Path) -> None:
        self.out, self.parts = out, list[str]()
        self.figures: list[Path] = []

    def add(self, *parts: str) -> None:
        """Paragraphs. What names of variants or sizes may hold is shown as it is: no picture of
        another file, no HTML.
        """
        for part in parts:
            code = part.startswith("```")
            self.parts.append(
                part if code else re.sub(r"!(?=\[)|<(?=[A-Za-z/!?])", r"\\\g<0>", part)
            )

    def figure(self, name: str, drawn: Figure, caption: str) -> None:
        """A figure that says what it shows, also to those who cannot see it."""
        plots.save(drawn, self.out / name)
        self.figures.append(self.out / name)
        self.parts.append(f"![{caption}]({name})\n\n*{caption}*")

    def bullets(self, items: Iterable[str]) -> None:
        """A list."""
        self.add("\n".join(f"- {item}" for item in items))

    def markdown(self) -> str:
        """The whole text."""
        return "\n\n".join(part.strip() for part in self.parts) + "\n"

    def html(self, title: str) -> str:
        """One page that needs no other file and no network: a table of contents under the opening,
        the figures put in, raw HTML of the text shown as text.
        """
        from markdown_it import MarkdownIt

        reader = MarkdownIt("commonmark", {"html": False}).enable("table")
        tokens = reader.parse(self.markdown())
        for token in tokens:
            for child in token.children or ():
                if child.type == "image" and self.out / str(child.attrs["src"]) in self.figures:
                    data = base64.b64encode(
                        (self.out / str(child.attrs["src"])).read_bytes()
                    ).decode()
                    child.attrs["src"] = f"data:image/png;base64,{data}"
        first = next((i for i, t in enumerate(tokens) if t.tag == "h2"), len(tokens))
        links = list[str]()
        for head, words in zip(tokens[first:], tokens[first + 1 :], strict=False):
            if head.type == "heading_open" and head.tag == "h2":
                head.attrs["id"] = f"part-{len(links) + 1}"
                text = reader.renderer.render([words], reader.options, {})
                links.append(f'<li><a href="#{head.attrs["id"]}">{text}</a></li>')
        head, rest = (
            reader.renderer.render(part, reader.options, {})
            for part in (tokens[:first], tokens[first:])
        )
        contents = f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>\n' if links else ""
        return _PAGE.format(title=escape(title), body=head + contents + rest)
