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
body {{ max-width: 56rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif;
  color: #1a1a1a; background: #fff; }}
h1, h2 {{ line-height: 1.2; }} h2 {{ margin-top: 2.2rem; border-bottom: 1px solid #ddd; }}
blockquote {{ margin: 1rem 0; padding: .4rem 1rem; border-left: .3rem solid #0072b2;
  background: #f2f7fb; font-size: 1.08rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto;
  font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left;
  white-space: nowrap; }} th {{ background: #f6f6f6; }}
img {{ max-width: 100%; }}
pre {{ background: #f6f6f6; padding: .7rem; overflow-x: auto; font-size: .85rem; }}
@media print {{ body {{ margin: 0; max-width: none; }} h2 {{ break-after: avoid; }}
  img, table {{ break-inside: avoid; }} }}
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
        """One page that needs no other file and no network: the figures are put in, raw HTML of the
        text is shown as text.
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
        return _PAGE.format(
            title=escape(title), body=reader.renderer.render(tokens, reader.options, {})
        )
