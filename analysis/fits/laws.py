"""Scaling laws: sums of powers, linear in their coefficients once the exponents are fixed; and the
checks of the rows they are fitted to.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Rows(NamedTuple):
    """What a law is fitted to: x (n, variables), y, multiplicities and relative standard deviations
    of the residuals, each (n,).
    """

    x: Array
    y: Array
    weights: Array
    sigma: Array


_POWER = re.compile(r"([A-Za-z]\w*)\^(-?)([A-Za-z]\w*)")
_NAME = re.compile(r"[A-Za-z]\w*")


@dataclass(frozen=True)
class Law:
    """A law written as a formula: terms joined by ``+``, each a coefficient and powers ``X^-e`` or
    ``X^e``.

    ``Law("E + A N^-alpha + B D^-beta")`` has the variables N and D (the columns of x, in this
    order) and the parameters E, A, alpha, B, beta. Coefficients are at least zero. In a law of
    several terms an exponent, with the sign it is written with, lies in ``EXPONENTS``; in a law of
    one term it is free. The same exponent may stand in several terms.

    Calling a law evaluates it: ``law(x, E=1.7, A=400, ...)`` with x of shape (n,) or (n,
    variables). Raises ValueError: the formula cannot be read.
    """

    formula: str
    variables: tuple[str, ...] = field(init=False, repr=False)
    coefficients: tuple[str, ...] = field(init=False, repr=False)  # one per term
    exponents: tuple[str, ...] = field(init=False, repr=False)
    # all of them, in the order of the formula
    params: tuple[str, ...] = field(init=False, repr=False)
    #: Signs (terms, variables, exponents): the log of term k is log c_k + sum over v, p of
    #: design[k, v, p] log x_v e_p.
    design: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        powers, coefficients, params = [], [], []
        for k, term in enumerate(self.formula.split("+")):
            coefficient, *rest = term.split() or [""]
            found = [match for power in rest if (match := _POWER.fullmatch(power))]
            if not _NAME.fullmatch(coefficient) or len(found) < len(rest):
                raise ValueError(
                    f"cannot read the term {' '.join(term.split())!r} of the law "
                    f"{self.formula!r}: write it as 'A', 'A C^-alpha' or 'A N^-a D^-b'"
                )
            coefficients.append(coefficient)
            params += [coefficient, *(match[3] for match in found)]
            powers += [(k, match[1], -1.0 if match[2] else 1.0, match[3]) for match in found]
        variables, exponents = (list(dict.fromkeys(power[i] for power in powers)) for i in (1, 3))
        if len(set(coefficients)) < len(coefficients) or set(coefficients) & set(exponents):
            raise ValueError(f"the law {self.formula!r} uses one name for two parameters")
        design = np.zeros((len(coefficients), len(variables), len(exponents)))
        for k, variable, sign, exponent in powers:
            design[k, variables.index(str(variable)), exponents.index(str(exponent))] += sign
        names: dict[str, list[Any]] = {
            "variables": variables,
            "coefficients": coefficients,
            "exponents": exponents,
            "params": list(dict.fromkeys(params)),
        }
        for name, value in names.items():
            object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "design", design)

    def columns(self, x: ArrayLike) -> Array:
        """x as (n, variables); a DataFrame of several columns is read by the names of the
        variables. Raises ValueError where it has another number of columns, or other names, than
        the law has variables, and for masked values.
        """
        given: Any = x
        if hasattr(given, "columns") and len(self.variables) > 1:
            if set(given.columns) != set(self.variables):
                raise ValueError(
                    f"x has the columns {', '.join(map(str, given.columns))}; {self.formula} "
                    f"reads a table by name: call them {', '.join(self.variables)}"
                )
            given = given[list(self.variables)]
        table = np.atleast_1d(unmasked("x", given))
        table = table[:, None] if table.ndim == 1 else table
        if table.ndim != 2 or table.shape[1] != len(self.variables):
            raise ValueError(
                f"x has the shape {np.shape(x)}; the law {self.formula} needs one column for each "
                f"of {', '.join(self.variables)}"
            )
        return table

    def __call__(self, x: ArrayLike, **params: float) -> Array:
        """The law's values, shape (n,). Raises ValueError for a missing or unknown parameter."""
        if set(params) != set(self.params):
            raise ValueError(
                f"the law {self.formula} has the parameters {', '.join(self.params)}, not "
                f"{', '.join(params) or 'none'}"
            )
        logs = np.einsum(
            "kvp,nv,p->kn",
            self.design,
            np.log(self.columns(x)),
            np.array([params[e] for e in self.exponents]),
        )
        values: Array = np.array([params[c] for c in self.coefficients]) @ np.exp(logs)
        return values

    def checked(self, rows: tuple[Any, Any, Any, Any], fixed: Collection[str] = ()) -> Rows:
        """``rows``: x, y, weights and sigma (None: all 1) as arrays. Parameters that are ``fixed``
        need none. Raises ValueError that names what is wrong and where.
        """
        x, y, weights, sigma = rows
        table, values = self.columns(x).copy(), unmasked("y", y)
        times, errors = (
            np.ones(len(table)) if given is None else unmasked(name, given)
            for name, given in (("weights", weights), ("sigma", sigma))
        )
        if {values.shape, times.shape, errors.shape} != {(len(table),)}:
            raise ValueError(
                f"x has {len(table)} rows, y the shape {values.shape}, weights {times.shape}, "
                f"sigma {errors.shape}: give one y, and one weight and sigma, per row of x"
            )
        for name, column in (
            *((f"x ({n})", c) for n, c in zip(self.variables, table.T, strict=True)),
            ("y", values),
            ("sigma", errors),
        ):
            check_positive(name, column)
        bad = np.flatnonzero(~(np.isfinite(times) & (times >= 0)))
        if len(bad):
            raise ValueError(
                f"weights must be finite and at least zero, but are not at {_listed(bad)}: they "
                "are multiplicities of rows"
            )
        used = table[times > 0]
        for name, column in zip(self.variables, used.T, strict=True):
            if len(column) and np.ptp(np.log(column)) < 1e-9:
                raise ValueError(
                    f"x ({name}) is {column[0]:g} in every row: the law {self.formula} needs "
                    f"different values of {name}"
                )
        needed, distinct = len(self.params) - len(fixed), len(np.unique(used, axis=0))
        if distinct < needed:
            why = (
                f"has {needed} {'free ' if fixed else ''}parameters and needs as many different "
                f"x, but the rows have only {distinct}"
            )
            raise ValueError(f"the law {self.formula} {why}: add sizes")
        return Rows(table, values, times, errors)


def unmasked(name: str, values: Any) -> Array:
    """A new array of floats. Raises ValueError, naming the rows, for values that are masked."""
    if isinstance(
        values, pd.DataFrame | pd.Series | pd.Index
    ):  # a missing value of any of its types
        values = values.to_numpy(dtype=np.float64, na_value=np.nan)
    if (mask := np.ma.getmaskarray(values)).any():
        bad = np.flatnonzero(mask.reshape(len(mask), -1).any(1))
        raise ValueError(f"{name} is masked at {_listed(bad)}: leave these rows out first")
    return np.array(values, dtype=np.float64)


def check_positive(name: str, values: ArrayLike) -> None:
    """Raise a ValueError that names the rows where ``values`` is not a positive finite number."""
    values = unmasked(name, values)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise ValueError(
            f"{name} must be positive and finite, but is {values[bad[0]]:g} at {_listed(bad)}: "
            "drop or mend them"
        )


def _listed(rows: NDArray[np.intp]) -> str:
    """``row 3`` or ``rows 3, 7, ... (12 in all)``, counted from 0."""
    head = ", ".join(str(row) for row in rows[:5]) + (
        f", ... ({len(rows)} in all)" if len(rows) > 5 else ""
    )
    return f"row{'s' if len(rows) > 1 else ''} {head} (counted from 0)"


EXPONENTS = (1e-3, 5.0)
"""Bounds of the exponents of laws with several terms; below them a power is a straight line in log
x, above them a step.
"""

POWER_LAW = Law("A C^-alpha")
POWER_LAW_OFFSET = Law("E + A C^-alpha")
CHINCHILLA = Law("E + A N^-alpha + B D^-beta")
"""Hoffmann et al. 2022 (2203.15556), equation 2."""
