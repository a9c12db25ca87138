"""Fit a law and say how far to trust it: no starting values, exact derivatives, a certificate
instead of an optimiser's word.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis import intervals
from analysis.bootstrap import bootstrap
from analysis.laws import Array, Law
from analysis.problem import Problem
from analysis.solve import Certificate, solve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Loss = Literal["log_mse", "mse", "huber"]
Method = Literal["delta-t", "profile", "bootstrap"]
Status = Literal["converged", "at_bound", "not_identified", "restarts_disagree", "not_converged"]


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law. Made by :func:`fit`; a frozen value.

    ``objective``, counting multiplicities: the mean squared residual of log y for ``log_mse`` and
    of y for ``mse``; for ``huber`` the plain sum over rows of the Huber loss of the residuals of
    log y.
    """

    law: Law
    estimates: tuple[float, ...]
    objective: float
    status: Status
    warnings: tuple[str, ...]
    certificate: Certificate
    x: Array = field(repr=False)
    y: Array = field(repr=False)
    weights: Array = field(repr=False)
    loss: Loss = "log_mse"
    delta: float = 1e-3

    @property
    def params(self) -> Mapping[str, float]:
        """The parameters by name, in the order of the formula."""
        return MappingProxyType(dict(zip(self.law.params, self.estimates, strict=True)))

    def predict(self, x: ArrayLike) -> Array:
        """The fitted law at x of shape (n,) or (n, variables); shape (n,)."""
        return self.law(x, **self.params)

    @property
    def residuals(self) -> Array:
        """log y - log prediction, or y - prediction for the loss ``mse``; shape (n,)."""
        predicted = self.predict(self.x)
        return self.y - predicted if self.loss == "mse" else np.log(self.y / predicted)

    @property
    def problem(self) -> Problem:
        """The minimisation that this fit solved, for refits."""
        return Problem.centred(self.law, self.x, self.y, self.weights, (self.loss, self.delta))

    def interval(
        self, level: float = 0.95, method: Method = "delta-t"
    ) -> dict[str, tuple[float, float]]:
        """A confidence interval for each parameter.

        ``delta-t``: Wald with Student t (rows - parameters degrees of freedom), on the log scale
        for a coefficient of a power. ``profile``: where the profiled objective passes the same t
        cut; keeps its shape where the delta method does not. ``bootstrap``: percentiles of 4000
        case resamples; too narrow with few rows, so a diagnostic. Raises ValueError: an unknown
        method, or a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level}: give a number between 0 and 1, such as 0.95")
        if method == "bootstrap":
            return bootstrap(self).interval(level)
        if method not in ("delta-t", "profile"):
            raise ValueError(f"method is {method!r}; valid: 'delta-t', 'profile', 'bootstrap'")
        return (
            intervals.delta_t(self, level)
            if method == "delta-t"
            else intervals.profile(self, level)
        )

    def band(self, x: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
        """Pointwise confidence limits of the law itself at x, by the delta method on the log scale
        with Student t; each of shape (n,).
        """
        return intervals.band(self, x, level)

    def summary(self, level: float = 0.95) -> str:
        """The fit as text."""
        limits, certificate = self.interval(level), self.certificate
        loss = f"huber (delta {self.delta:g})" if self.loss == "huber" else self.loss
        lines = [
            f"{self.law.formula}   {len(self.y)} rows, loss {loss}, objective "
            f"{self.objective:.6g}, {self.status}"
        ]
        lines += [
            f"  {name:<8} {value:>12.6g}   [{limits[name][0]:.6g}, {limits[name][1]:.6g}]"
            for name, value in self.params.items()
        ]
        lines += [
            f"  {level:.0%} intervals: delta method, Student t with {intervals.freedom(self):g} "
            "degrees of freedom"
        ]
        lines += [
            f"  gradient {certificate.gradient_norm:.1e}, {certificate.agreeing} of "
            f"{certificate.restarts} restarts agree"
        ]
        return "\n".join(lines + [f"  warning: {warning}" for warning in self.warnings])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"

    def plot(self, ax: Axes | None = None) -> Axes:
        """The data, the law and its 95 % band on log axes; for several variables the observed
        against the fitted values. Returns the axes.
        """
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots()[1]
        x = self.x[:, 0]
        if self.x.shape[1] == 1:
            line = np.geomspace(x.min(), x.max(), 200)
            ax.fill_between(line, *self.band(line), alpha=0.2, linewidth=0, color="C0")
            ax.plot(line, self.predict(line), color="C0", label=self.law.formula)
            ax.plot(x, self.y, "o", color="black", markersize=4)
        else:
            ends = [self.y.min(), self.y.max()]
            ax.plot(ends, ends, color="C0", label=self.law.formula)
            ax.plot(self.predict(self.x), self.y, "o", color="black", markersize=4)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel=self.law.variables[0] if self.x.shape[1] == 1 else "fitted",
            ylabel="y",
        )
        ax.legend()
        return ax

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the data."""
        plain: dict[str, Any] = {
            "law": self.law.formula,
            "params": dict(self.params),
            "interval_95": {k: list(v) for k, v in self.interval().items()},
        }
        plain |= {
            "rows": len(self.y),
            "loss": self.loss,
            "delta": self.delta if self.loss == "huber" else None,
            "objective": self.objective,
        }
        return plain | {
            "status": self.status,
            "warnings": list(self.warnings),
            "certificate": asdict(self.certificate),
        }


def fit(
    law: Law,
    x: ArrayLike,
    y: ArrayLike,
    *,
    loss: Loss = "log_mse",
    delta: float = 1e-3,
    weights: ArrayLike | None = None,
) -> Fit:
    """Fit ``law`` to positive ``y`` (n,) at positive ``x``, (n,) or (n, variables). No starting
    values are needed.

    Args:
        loss: ``log_mse`` and ``mse`` are least squares of log y and of y; ``huber`` is Huber's loss
        of log y with threshold ``delta``
            (Hoffmann et al. 2022, section 3.3).
        weights: multiplicities, (n,): a row of weight 2 counts as that row twice, also in the
        intervals. They are never standard deviations.
    Raises ValueError: too few rows, a variable that does not vary, or values that are not positive
    and finite (the message names the rows).
    """
    if loss not in ("log_mse", "mse", "huber"):
        raise ValueError(f"loss is {loss!r}; valid: 'log_mse', 'mse', 'huber'")
    if loss == "huber" and not delta > 0:
        raise ValueError(
            f"delta is {delta}: give a positive threshold in units of log y, such as 1e-3"
        )
    table, values, times = law.checked(x, y, weights)
    problem = Problem.centred(law, table, values, times, (loss, delta))
    point, least, certificate = solve(problem, times)
    estimates = tuple(float(value[0]) for value in problem.params(point[None]).values())
    objective = float(problem.objective(np.array(least), float(times.sum())))
    return _judged(
        Fit(
            law,
            estimates,
            objective,
            "converged",
            (),
            certificate,
            table,
            values,
            times,
            loss,
            delta,
        )
    )


def _judged(draft: Fit) -> Fit:
    """Add the warnings and the status: the gravest trouble, that the data do not identify the law
    outranking all.
    """
    certificate = draft.certificate
    warnings = [f"{name} is at a bound ({draft.params[name]:g})" for name in certificate.bounds_hit]
    status: Status = "at_bound" if warnings else "converged"
    if not certificate.restarts_agree:
        status = "restarts_disagree"
        warnings.append(
            f"only {certificate.agreeing} of {certificate.restarts} restarts reached the best "
            "objective"
        )
    if not certificate.converged:
        status = "not_converged"
        warnings.append(f"the optimiser stopped with a gradient of {certificate.gradient_norm:.1e}")
    loose = intervals.unidentified(draft)
    if loose:
        status = "not_identified"
        warnings += [f"{name} is not identified: {why}" for name, why in loose.items()]
    if intervals.freedom(draft) < 1:
        warnings.append(
            f"the rows, counted by their weights, are no more than the {len(draft.params)} "
            "parameters: intervals are unbounded"
        )
    return replace(draft, status=status, warnings=tuple(warnings))
