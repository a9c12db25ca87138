"""The one reader of YAML: data only (no objects, no aliases, no duplicate keys), and it remembers
the line of every key.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from attnres_lab.errors import UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 50


class YamlFile:
    """A mapping read from ``path`` (or from ``text``, said to lie there): ``data`` and, for
    messages, ``where(dotted_key)``.

    Raises UserError, with file and line, for a missing file, bad syntax, aliases, duplicate keys,
    tags, or anything but a mapping at the top.
    """

    def __init__(self, path: Path | str, text: str | None = None) -> None:
        self.path = Path(path)
        try:
            self.text = text = self.path.read_text() if text is None else text
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{self.path}: cannot be read "
                f"({getattr(error, 'strerror', None) or 'not UTF-8 text'})"
            ) from None
        if len(text) > MAX_BYTES:
            raise UserError(f"{self.path}: larger than {MAX_BYTES} bytes, not a config")
        self.lines: dict[tuple[str, ...], str] = {}  # file:line of each key
        try:
            depth = 0
            for event in yaml.parse(text, Loader=_Loader):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
                    event, yaml.CollectionEndEvent
                )
                if depth > MAX_DEPTH:  # the parser takes time as its square
                    raise UserError(
                        f"{self.path}: nested deeper than {MAX_DEPTH} levels, not a config"
                    )
                if wrong := _foreign(event):
                    line = event.start_mark.line + 1 if event.start_mark else 0
                    raise UserError(f"{self.path}:{line}: {wrong}")
            node = yaml.compose(text, Loader=_Loader)
            if node is not None:
                self._walk(node, ())
            data = yaml.load(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 0
            syntax = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
            remedy = "; check the indentation of this line and the one above" if syntax else ""
            raise UserError(f"{self.path}:{line}: {error.problem}{remedy}") from None
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise UserError(
                f"{self.path}: not readable as YAML ({str(error).splitlines()[0]})"
            ) from None
        if not isinstance(data, dict):
            raise UserError(
                f"{self.path}: a mapping of keys is expected at the top, found "
                f"{type(data).__name__}"
            )
        self.data: dict[str, Any] = data

    def where(self, dotted: str) -> str:
        """``file:line`` of the key, or of its nearest parent that the file holds."""
        parts = tuple(dotted.split("."))
        for end in range(len(parts), 0, -1):
            if place := self.lines.get(parts[:end]):
                return place
        return str(self.path)

    def _walk(self, node: yaml.Node, path: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise UserError(
                        f"{self.path}:{key.start_mark.line + 1}: a key must be plain text"
                    )
                here = (*path, *key.value.split("."))
                if here in self.lines:
                    raise UserError(
                        f"{self.path}:{key.start_mark.line + 1}: '{'.'.join(here)}' is given "
                        f"twice (first on line {self.lines[here].rpartition(':')[2]})"
                    )
                self.lines[here] = f"{self.path}:{key.start_mark.line + 1}"
                self._walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._walk(item, (*path, str(index)))


class _Loader(yaml.SafeLoader):
    """SafeLoader in which 1e-3 is a number and only true / false are booleans (YAML 1.2)."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in pairs
        if tag
        not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
    ]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tfTF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.?[\d_]*(?:[eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF)|\.nan|\.NaN)$"
    ),
    list("-+0123456789."),
)


def _foreign(event: yaml.Event) -> str:
    """Why the event is not plain data; empty where it is."""
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        return "anchors and aliases are not supported; write the value out"
    if tag := getattr(event, "tag", None):
        tag = tag.replace("tag:yaml.org,2002:", "!!")
        return f"tags ({tag}) are not supported; write a plain value"
    return ""


def parse_value(text: str) -> Any:
    """The value of ``key=text`` on the command line, by the same rules as in a file. Raises
    UserError.
    """
    try:
        for wrong in filter(None, map(_foreign, yaml.parse(text, Loader=_Loader))):
            raise UserError(f"{text!r}: {wrong}")
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"{text!r}: not readable as a YAML value") from None
