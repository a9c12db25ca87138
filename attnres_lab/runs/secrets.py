"""What must not leave this machine in a record: passwords and tokens."""

from __future__ import annotations

import os
import re

_VARIABLES = (
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "PGPASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
_WORD = r"[\w.-]*(?:password|passwd|secret|token|api_?key|access_?key)[\w.-]*"


def redact(text: str) -> str:
    """``text`` without passwords and tokens: user parts and secret query values of addresses, and
    values of the secret variables. A password may hold any character but a space or a quote.
    """
    for secret in filter(None, map(os.environ.get, _VARIABLES)):
        text = text.replace(secret, "***")
    text = re.sub(r"(?<=://)[^\s'\"]*@", "***@", text)
    return re.sub(
        r"(?i)([?&][^=&\s]*(?:password|token|secret|key)[^=&\s]*=)[^&\s'\"]+", r"\1***", text
    )


def redact_code(text: str) -> str:
    """``redact``, and what source code assigns as text to a name that sounds secret."""
    assigned = rf"(?i)(\b{_WORD}[\"']?\s*[=:]\s*[rbf]?)([\"'])[^\"'\n]+\2"
    return re.sub(assigned, r"\1\2***\2", redact(text))
