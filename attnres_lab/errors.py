"""Errors that a user can act on: one line with the place, the key and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The command line prints it without a traceback and exits with 2."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the closest of ``valid``, else the list of valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f", did you mean '{close[0]}'?"
    return f"; valid: {', '.join(names)}" if 0 < len(names) <= 20 else ""
