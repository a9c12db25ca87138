"""A law with estimates and the rows they came from: what intervals and refits start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from analysis.fits.laws import Array, Law, Rows
from analysis.fits.objective import Loss, Objective


@dataclass(frozen=True, eq=False)
class Fitted:
    """A law fitted to ``rows`` under a ``loss``: ``estimates`` of its parameters, in the order of
    the formula, of which ``fixed`` were given.

    ``objective``, counting multiplicities: the mean squared residual for ``log_mse`` and ``mse``,
    the plain sum over rows of the Huber loss for ``huber`` and ``huber_linear``.
    """

    law: Law
    estimates: tuple[float, ...]
    objective: float
    rows: Rows = field(repr=False)
    loss: Loss
    fixed: tuple[str, ...]

    @property
    def x(self) -> Array:
        """(n, variables)."""
        return self.rows.x

    @property
    def y(self) -> Array:
        """(n,)."""
        return self.rows.y

    @property
    def weights(self) -> Array:
        """Multiplicities, (n,)."""
        return self.rows.weights

    @property
    def params(self) -> Mapping[str, float]:
        """The parameters by name, in the order of the formula."""
        return MappingProxyType(dict(zip(self.law.params, self.estimates, strict=True)))

    @property
    def freedom(self) -> float:
        """Rows (by multiplicity) minus fitted parameters."""
        return float(self.weights.sum()) - len(self.law.params) + len(self.fixed)

    def predict(self, x: ArrayLike) -> Array:
        """The fitted law at x of shape (n,) or (n, variables); shape (n,)."""
        return self.law(x, **self.params)

    @property
    def residuals(self) -> Array:
        """log y - log prediction, or y - prediction for ``mse`` and ``huber_linear``; (n,)."""
        predicted = self.predict(self.x)
        return np.log(self.y / predicted) if self.loss.log else self.y - predicted

    @property
    def function(self) -> Objective:
        """The function that this fit minimised, for refits."""
        fixed = {name: self.params[name] for name in self.fixed}
        return Objective.centred(self.law, self.rows, self.loss, fixed)
