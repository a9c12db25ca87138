"""Every public name of ``analysis`` and ``attnres_lab`` is told in its docstring: each parameter by
its name, and that it raises where anything it calls refuses its input.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from types import FunctionType
from typing import Any

import pytest

import analysis
import attnres_lab

OURS = ("analysis", "attnres_lab")


def public(package: Any) -> Iterator[tuple[str, Any, str]]:
    """Its functions and classes, and the methods and properties of these: a dotted name, the thing
    and what is told of it, by a class that it extends too. What overrides Lightning is told there;
    laws are values of a class that is among them.
    """
    for name in package.__all__:
        found = getattr(package, name)
        if isinstance(found, analysis.Law):
            continue
        line = [kind for kind in getattr(found, "__mro__", [found]) if _our(kind)]
        yield f"{package.__name__}.{name}", found, "\n".join(kind.__doc__ or "" for kind in line)
        for key in dir(found) if inspect.isclass(found) else ():
            owners = [kind for kind in found.__mro__ if key in vars(kind)]
            members = [_function(vars(kind)[key]) for kind in owners]
            if key[0] != "_" and all(map(_our, owners)) and isinstance(members[0], FunctionType):
                text = "\n".join(member.__doc__ or "" for member in members)
                yield f"{package.__name__}.{name}.{key}", members[0], text


def _our(thing: Any) -> bool:
    return thing.__module__.partition(".")[0] in OURS


def _function(member: Any) -> Any:
    if isinstance(member, property):
        return member.fget
    return member.func if isinstance(member, cached_property) else member


def refuses(function: FunctionType, seen: set[Callable[..., Any]]) -> bool:
    """Whether it, or a function of ours that it names, raises ValueError or UserError."""
    if function in seen:
        return False
    seen.add(function)
    if re.search(r"\braise (ValueError|UserError)\b", inspect.getsource(function)):
        return True
    codes = [function.__code__]
    codes += [const for const in function.__code__.co_consts if inspect.iscode(const)]
    named = (function.__globals__.get(name) for code in codes for name in code.co_names)
    return any(refuses(f, seen) for f in named if isinstance(f, FunctionType) and _our(f))


CASES = [case for package in (analysis, attnres_lab) for case in public(package)]


@pytest.mark.parametrize(("thing", "text"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_docstring_names_every_parameter_and_says_what_is_raised(thing: Any, text: str) -> None:
    assert text.strip()
    parameters = set(inspect.signature(thing).parameters) - {"self", "args", "kwargs"}
    assert not {key for key in parameters if not re.search(rf"\b{key}\b", text)}
    made = vars(thing).get("__post_init__") if inspect.isclass(thing) else thing
    if made and refuses(made, set()):
        assert re.search(r"\b[Rr]aises\b", text)
