"""What must not leave this machine in a record: passwords and tokens."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from attnres_lab.errors import UserError

_VARIABLES = (
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "PGPASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
# a password may hold any character, and so the last @ ends it
_HOST = r"(?:.*@)?(?:\[[\da-fA-F:.]+\]|[\w.-]*)(?::\d{1,5})?(?:[/?].*)?"
_SERVER = re.compile(rf"https?://(?![/:?]){_HOST}")
_DATABASE = re.compile(
    rf"sqlite(?:\+\w+)?://(?:/.*)?|(?:postgresql|mysql|mssql)(?:\+\w+)?://{_HOST}"
)
_SHORTEST = 8  # of a variable that only sounds secret: a shorter value may be any word
_SETTING = r"[\w.-]*(?:password|passwd|secret|(?<![a-z])token|api_?key|access_?key)"
_WORD = r"[\w.-]*(?:password|passwd|secret|token|api_?key|access_?key)[\w.-]*"


def check_address(key: str, address: str, *, server: bool = False) -> None:
    """Raises UserError where ``address`` is none of a database, or of a ``server``."""
    if not _DATABASE.fullmatch(address) and not (server and _SERVER.fullmatch(address)):
        raise UserError(
            f"{key}: {redact(address)}: no address; as sqlite:////path/to.db, "
            "postgresql://user@host:5432/name" + (" or https://host:5000" if server else "")
        )


def redact(text: str) -> str:
    """``text`` without passwords and tokens: user parts and secret query values of addresses, and
    values of the secret variables. A password may hold any character but the end of a line.
    """
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = re.sub(r"(?<=://)[^\s'\"]*@", "***@", text)
    # with a space or a quote in it; but host:port is no user:password
    text = re.sub(r"(?<=://)[^\s/'\":@*]*:(?!\d+(?:[/\s'\",;)]|$))[^\n]*@", "***@", text)
    return re.sub(
        r"(?i)([?&][^=&\s]*(?:password|token|secret|key)[^=&\s]*=)[^&\s'\"]+", r"\1***", text
    )


def redact_code(text: str) -> str:
    """``redact``, and what source code assigns as text to a name that sounds secret."""
    assigned = rf"(?i)(\b{_WORD}[\"']?\s*[=:]\s*[rbf]?)([\"'])[^\"'\n]+\2"
    return re.sub(assigned, r"\1\2***\2", redact(text))


def redact_settings(text: str) -> str:
    """``redact_code`` of YAML or shell, where what is assigned need not be quoted."""
    assigned = rf"(?i)(\b{_SETTING}[\"']?[ \t]*[=:][ \t]*)(?![\"'])\S+"
    return re.sub(assigned, r"\1***", redact_code(text))


def redact_value(value: Any) -> Any:
    """``redact`` of every text in a tree of a config, and what a key that sounds secret has."""
    if isinstance(value, Mapping):
        return {
            key: "***"
            if isinstance(item, str) and re.fullmatch(f"(?i){_SETTING}", str(key))
            else redact_value(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_value(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _secrets() -> list[str]:
    """Values of the secret variables, as they are and as JSON and addresses have them; the longest
    first, as one may be a part of another.
    """
    named = {
        value
        for name, value in os.environ.items()
        if name in _VARIABLES or (len(value) >= _SHORTEST and re.fullmatch(f"(?i){_SETTING}", name))
    }
    forms = {f for v in named for f in (v, quote(v, safe=""), json.dumps(v)[1:-1], repr(v)[1:-1])}
    return sorted(forms - {""}, key=len, reverse=True)
