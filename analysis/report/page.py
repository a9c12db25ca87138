"""A report in the making as Markdown, and the same as one HTML page that holds its figures."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
table {{ border-collapse: collapse; max-width: 100%; font-variant-numeric: tabular-nums;
  font-size: .92rem; }}
th, td {{ padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: break-word; }} th {{ background: var(--soft); }}
td:nth-child(2):last-child {{ overflow-wrap: anywhere; }}
p:has(> img) {{ display: grid; gap: .7rem; justify-items: center;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }}
img {{ width: 100%; max-width: 42rem; background: #fff; border-radius: .3rem; }}
pre {{ background: var(--soft); padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .85rem; }}
{wide}
@media (max-width: 40rem) {{ body {{ margin: 1rem auto; overflow-wrap: anywhere; }}
  th, td {{ padding: .2rem .4rem; }} {narrow} }}
@media print {{ :root {{ color-scheme: light; --text: #000; --page: #fff; --line: #ddd;
  --soft: #f6f6f6; --quote: #f2f7fb; }} body {{ margin: 0; max-width: none; }}
  h2 {{ break-after: avoid; }} img, tr {{ break-inside: avoid; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
# a table as a list: each row a block, each value behind the head of its column
_LIST = """table.{0} thead {{ display: none; }}
  table.{0}, table.{0} tbody {{ display: block; }}
  table.{0} tr {{ display: block; padding: .4rem 0; border-bottom: 1px solid var(--line); }}
  table.{0} td {{ display: flex; justify-content: space-between; gap: 1rem; border: 0;
    text-align: right; padding: .1rem 0; overflow-wrap: anywhere; }}
  table.{0} td:first-child {{ font-weight: bold; }}
  table.{0} td::before {{ content: attr(data-head); font-weight: normal; text-align: left; }}"""
#: Columns that have no room on a phone, and on any screen.
_MANY, _TOO_MANY = 4, 10


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
            self.parts.append(part if part.startswith("```") else _shown(part))

    def figure(self, panels: Mapping[str, Figure], caption: str) -> None:
        """A figure of one or several ``panels``, by the names of their files, that says what it
        shows, also to those who cannot see it. Each panel is a picture of its own, so that a
        narrow page has one a row.
        """
        taken = {path.stem for path in self.figures}
        images = []
        for name, drawn in panels.items():
            stem = re.sub(r"[^\w.-]", "_", name, flags=re.A).strip(".")
            while stem in taken:
                stem += "_"
            taken.add(stem)
            plots.save(drawn, self.out / f"{stem}.png")
            self.figures.append(self.out / f"{stem}.png")
            title = drawn.axes[0].get_title() if len(panels) > 1 else ""
            words = re.sub(r"[\[\]<>`\\]", "", f"{title}: {caption}" if title else caption)
            images.append(f"![{words}]({stem}.png)")
        self.parts.append("\n".join(images) + f"\n\n*{_shown(caption)}*")

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
        _label_cells(tokens)
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
        lists = {"wide": _LIST.format("wide"), "narrow": _LIST.format("many")}
        return _PAGE.format(title=escape(title), body=head + contents + rest, **lists)


def _shown(text: str) -> str:
    """Text whose pictures and HTML show as they are written."""
    return re.sub(r"!(?=\[)|<(?=[A-Za-z/!?])", r"\\\g<0>", text)


def _label_cells(tokens: Sequence[Any]) -> None:
    """Tell each cell the head of its column, and each table whether it has many."""
    table, heads, place = tokens[0], list[str](), 0
    for token, after in itertools.pairwise(tokens):
        if token.type == "table_open":
            table, heads = token, []
        elif token.type == "th_open":
            heads.append(after.content)
        elif token.type == "tr_open":
            place = 0
        elif token.type == "td_open":
            token.attrs["data-head"] = heads[place]
            place += 1
        elif token.type == "thead_close" and len(heads) >= _MANY:
            table.attrs["class"] = "many wide" if len(heads) >= _TOO_MANY else "many"
