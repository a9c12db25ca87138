"""Fit a law and say how far to trust it: no starting values, exact derivatives, a certificate
instead of an optimiser's word.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.fits import intervals
from analysis.fits.bootstrap import Bootstrap, bootstrap
from analysis.fits.fitted import Fitted
from analysis.fits.intervals import Derived, Limits
from analysis.fits.laws import EXPONENTS, Array, Law
from analysis.fits.objective import Loss, LossName, Objective
from analysis.fits.profile import profile
from analysis.fits.solve import Certificate, solve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Method = Literal["delta-t", "robust", "profile", "bootstrap"]
METHODS = {
    "delta-t": "delta method, Student t with {freedom:g} degrees of freedom",
    "robust": "delta method with the HC3 sandwich, Student t with {freedom:g} degrees of freedom",
    "profile": "profiled objective, Student t with {freedom:g} degrees of freedom",
    "bootstrap": "percentiles of 4000 case resamples",
}
MANY_ROWS = 50  # from here on a Huber fit's default interval is the bootstrap
Status = Literal["converged", "at_bound", "not_identified", "restarts_disagree", "not_converged"]


@dataclass(frozen=True, eq=False)
class Fit(Fitted):
    """A fitted law with its ``certificate``. Made by :func:`fit`; a frozen value. ``status`` is
    ``converged`` or the first thing that is wrong, ``warnings`` say all of it.
    """

    certificate: Certificate
    status: Status = "converged"
    warnings: tuple[str, ...] = ()

    @property
    def method(self) -> Method:
        """The interval that holds by default: with Huber's loss and from 50 rows on the bootstrap,
        the only one that does where rows differ in variance; else ``delta-t``.
        """
        return "bootstrap" if self.loss.huber and self.weights.sum() >= MANY_ROWS else "delta-t"

    @cached_property
    def resamples(self) -> Bootstrap:
        """4000 case resamples, refitted. Raises as ``bootstrap``."""
        return bootstrap(self)

    def interval(self, level: float = 0.95, method: Method | None = None) -> Limits:
        """A confidence interval for each parameter, by default by ``method``.

        ``delta-t``: Wald with Student t (rows - parameters degrees of freedom), on the log scale
        for a coefficient of a power. ``robust``: the same for rows of unequal variance (HC3).
        ``profile``: where the profiled objective passes the same t cut; keeps its shape where the
        delta method does not. ``bootstrap``: percentiles of 4000 case resamples; too narrow with
        few rows. Raises ValueError: an unknown method, or a level outside (0, 1).
        """
        intervals.check_level(level)
        method = method or self.method
        if method == "bootstrap":
            return self.resamples.interval(level)
        if method == "profile":
            return profile(self, level)
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; valid: {', '.join(map(repr, METHODS))}")
        return intervals.delta_t(self, level, robust=method == "robust")

    def covariance(self, robust: bool = False) -> Array:
        """Of the estimates, (P, P) in the order of ``params``; zero where fixed. ``robust``: for
        rows of unequal variance (HC3).
        """
        linear = intervals.on_own_scale(self)
        unit = np.array([1.0 if linear[name] else abs(v) for name, v in self.params.items()])
        return intervals.covariance(self, robust) * np.outer(unit, unit)

    @property
    def stderr(self) -> dict[str, float]:
        """Standard error of each parameter; of the bootstrap where that is the default method."""
        if self.method == "bootstrap":
            return {k: float(np.nanstd(v, ddof=1)) for k, v in self.resamples.params.items()}
        errors = np.sqrt(np.diag(self.covariance()))
        return dict(zip(self.law.params, errors.tolist(), strict=True))

    def derived(
        self,
        function: Callable[[Mapping[str, float]], float],
        level: float = 0.95,
        *,
        method: Method | None = None,
        log: bool = False,
    ) -> Derived:
        """A function of the parameters with its standard error and interval, such as ``lambda p:
        p["beta"] / (p["alpha"] + p["beta"])``.

        By default by ``method``; ``delta-t`` works on the log scale with ``log``, for quantities
        that are positive and span decades, ``bootstrap`` takes percentiles. Raises ValueError: a
        level outside (0, 1), another method, or ``log`` of a quantity that is not positive.
        """
        intervals.check_level(level)
        if log and not (value := float(function(self.params))) > 0:
            raise ValueError(f"log needs a quantity above 0, which is {value:.6g} here")
        method = method or self.method
        if method == "delta-t":
            return intervals.derived(self, function, level, log)
        if method != "bootstrap":
            raise ValueError(f"method is {method!r}; valid here: 'delta-t', 'bootstrap'")
        value, draws = float(function(self.params)), self.resamples.params
        rows = zip(*draws.values(), strict=True)
        values = np.array([function(dict(zip(draws, row, strict=True))) for row in rows])
        low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
        error = np.nanstd(np.log(values) if log else values, ddof=1)
        return Derived(value, float(error), (float(low), float(high)))

    def band(
        self, x: ArrayLike, level: float = 0.95, *, prediction: bool = False
    ) -> tuple[Array, Array]:
        """Pointwise limits, at ``level``, of the law itself at x, or with ``prediction`` of the y
        of one more row there, which scatters as the rows of the fit do on average; each (n,). By
        the delta method on the log scale with Student t, or percentiles of the resamples where
        ``method`` is the bootstrap.
        """
        intervals.check_level(level)
        if self.method == "bootstrap":
            return intervals.drawn_band(self, self.resamples.params, x, level, prediction)
        return intervals.band(self, x, level, prediction)

    def summary(self, level: float = 0.95) -> str:
        """The fit as text, its intervals at ``level``. Raises as ``interval``."""
        limits, certificate = self.interval(level), self.certificate
        lines = [
            f"{self.law.formula}   {len(self.y)} rows, loss {self.loss}, objective "
            f"{self.objective:.6g}, {self.status}"
        ]
        for name, value in self.params.items():
            low, high = limits[name]
            known = "fixed" if name in self.fixed else f"[{low:.6g}, {high:.6g}]"
            lines.append(f"  {name:<8} {value:>12.6g}   {known}")
        how = METHODS[self.method].format(freedom=self.freedom)
        lines += [
            f"  {level:.0%} intervals: {how}",
            f"  gradient {certificate.gradient_norm:.1e}, {certificate.agreeing} of "
            f"{certificate.restarts} restarts agree",
        ]
        return "\n".join(lines + [f"  warning: {warning}" for warning in self.warnings])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"

    def plot(self, ax: Axes | None = None) -> Axes:
        """The data, the law and its 95 % band on log axes; for several variables the observed
        against the fitted values. On ``ax`` (default: new axes), which it returns.
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
            "interval_method": self.method,
            "fixed": list(self.fixed),
            "rows": len(self.y),
            "loss": self.loss.name,
            "delta": self.loss.delta if self.loss.huber else None,
            "objective": self.objective,
        }
        return plain | {
            "status": self.status,
            "warnings": list(self.warnings),
            "certificate": asdict(self.certificate),
        }


def fit(  # noqa: PLR0913
    law: Law,
    x: ArrayLike,
    y: ArrayLike,
    *,
    loss: LossName = "log_mse",
    delta: float = 1e-3,
    weights: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Fit:
    """Fit ``law`` to positive ``y`` (n,) at positive ``x``, (n,) or (n, variables), or a DataFrame
    with the variables' names. No starting values are needed.

    Args:
        loss: ``log_mse`` and ``mse`` are least squares of log y and of y; ``huber`` and
            ``huber_linear`` are Huber's loss of log y and of y with threshold ``delta`` (Hoffmann
            et al. 2022, section 3.3, use ``huber``).
        weights: multiplicities, (n,): a row of weight 2 counts as that row twice, also in the
            intervals. They are never standard deviations.
        sigma: standard deviations of the residuals (of log y, or of y), (n,): each residual is
            divided by its own. Only their ratios matter to the intervals, as the common scale is
            estimated; Huber's delta is then in units of sigma.
        fixed: parameters that are known, by name.
    Raises ValueError: too few rows, a variable that does not vary, masked values, values that are
    not positive and finite (the message names the rows), or parameters that cannot be fixed.
    """
    kind, given = Loss(loss, delta), dict(fixed or {})
    _check_fixed(law, given)
    rows = law.checked((x, y, weights, sigma), given)
    objective = Objective.centred(law, rows, kind, given)
    point, least, certificate = solve(objective, rows.weights)
    found = objective.params(point[None])
    estimates = tuple(given.get(name, float(value[0])) for name, value in found.items())
    value = float(objective.reported(np.array(least), float(rows.weights.sum())))
    draft = Fit(law, estimates, value, rows, kind, tuple(given), certificate)
    return _judged(draft)


def _check_fixed(law: Law, fixed: Mapping[str, float]) -> None:
    low, high = EXPONENTS if len(law.coefficients) > 1 else (-np.inf, np.inf)
    for name, value in fixed.items():
        if name not in law.params:
            raise ValueError(f"cannot fix {name!r}: {law.formula} has {', '.join(law.params)}")
        least, most = (low, high) if name in law.exponents else (0.0, np.inf)
        if not (least <= value <= most and np.isfinite(value)):
            raise ValueError(f"cannot fix {name} at {value}: it must be in [{least:g}, {most:g}]")
    if len(fixed) == len(law.params):
        raise ValueError(f"all parameters of {law.formula} are fixed: nothing is left to fit")


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
    if draft.freedom < 1:
        warnings.append(
            "the rows, counted by their weights, are no more than the free "
            "parameters: intervals are unbounded"
        )
    return replace(draft, status=status, warnings=tuple(warnings))
