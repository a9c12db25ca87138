"""The objective of a fit and its exact derivatives, for many fits at once.

Shapes: B points (restarts or resamples) on the same n rows, K terms, p exponents, P = K + p
parameters. A point is [c_1..c_K, e_1..e_p]: coefficients in centred units (about 1), then
exponents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from analysis.fits.laws import EXPONENTS, Array, Law, Rows

LossName = Literal["log_mse", "mse", "huber", "huber_linear"]


@dataclass(frozen=True)
class Loss:
    """Least squares or Huber's loss with threshold ``delta``, of residuals of log y or of y.

    Raises ValueError: an unknown name, or a threshold that is not positive.
    """

    name: LossName = "log_mse"
    delta: float = 1e-3

    def __post_init__(self) -> None:
        if self.name not in get_args(LossName):
            raise ValueError(
                f"loss is {self.name!r}; valid: {', '.join(map(repr, get_args(LossName)))}"
            )
        if self.huber and not self.delta > 0:
            raise ValueError(
                f"delta is {self.delta}: give a positive threshold in units of log y (of y for "
                "huber_linear), such as 1e-3"
            )

    @property
    def log(self) -> bool:
        """Whether residuals are of log y."""
        return self.name in ("log_mse", "huber")

    @property
    def huber(self) -> bool:
        return self.name.startswith("huber")

    @property
    def threshold(self) -> float:
        """Huber's delta; infinity for least squares."""
        return self.delta if self.huber else np.inf

    def __str__(self) -> str:
        return f"{self.name} (delta {self.delta:g})" if self.huber else self.name


@dataclass(frozen=True)
class Objective:
    """Minimise the weighted sum of rho(residual / sigma), rho(r) = r^2 / 2 or Huber's, the residual
    being log y - log m or y - m.
    """

    law: Law
    log_x: Array  # (n, variables)
    y: Array  # (n,), divided by scale
    sigma: Array  # (n,), in units of the residual, divided by scale where that is of y
    centre: Array  # (K, variables): log x where a term equals its coefficient
    scale: float
    loss: Loss
    held: Array  # (P,): the point's values of fixed parameters, NaN where free

    @staticmethod
    def centred(law: Law, rows: Rows, loss: Loss, fixed: Mapping[str, float]) -> Objective:
        """The objective with log x and log y centred at their means."""
        mean = np.average(np.log(np.c_[rows.x, rows.y]), axis=0, weights=rows.weights)
        centre, scale = np.tile(mean[:-1], (len(law.coefficients), 1)), float(np.exp(mean[-1]))
        # a fixed coefficient stays as it is when exponents move only if its term is not centred
        centre[[name in fixed for name in law.coefficients]] = 0.0
        given = [fixed.get(name, np.nan) for name in (*law.coefficients, *law.exponents)]
        held = np.array(given) / np.where(np.arange(len(given)) < len(centre), scale, 1.0)
        sigma = rows.sigma / (1.0 if loss.log else scale)
        return Objective(law, np.log(rows.x), rows.y / scale, sigma, centre, scale, loss, held)

    @property
    def free(self) -> NDArray[np.bool_]:
        """Which parameters are fitted, (P,)."""
        return np.isnan(self.held)

    @cached_property
    def magnitude(self) -> Array:
        """(n,): the squared residual, over sigma, that a row as wrong as it is large would have."""
        size = 1.0 if self.loss.log else self.y
        return np.asarray((size / self.sigma) ** 2)

    def reported(self, value: Array, rows: float) -> Array:
        """What a Fit reports for a summed loss: Huber's sum, or the mean squared residual."""
        return value if self.loss.huber else value * 2 / rows

    def units(self, exponents: Array) -> Array:
        """What a point's coefficients are multiplied by to give the law's, (B, K), for exponents
        (B, p).
        """
        units: Array = self.scale * np.exp(
            -np.einsum("kvp,kv,bp->bk", self.law.design, self.centre, exponents)
        )
        return units

    def point(self, params: Mapping[str, float]) -> Array:
        """The point (P,) of a law's parameters."""
        exponents = np.array([params[e] for e in self.law.exponents])
        point: Array = np.r_[
            np.array([params[c] for c in self.law.coefficients]) / self.units(exponents[None])[0],
            exponents,
        ]
        return point

    def params(self, point: Array) -> dict[str, Array]:
        """The law's parameters, each (B,), of points (B, P)."""
        terms = len(self.law.coefficients)
        raw = np.c_[point[:, :terms] * self.units(point[:, terms:]), point[:, terms:]]
        columns = dict(zip([*self.law.coefficients, *self.law.exponents], raw.T, strict=True))
        return {name: columns[name] for name in self.law.params}

    @cached_property
    def z(self) -> Array:
        """(K, p, n): the log of term k's basis is e @ z[k]."""
        z: Array = np.einsum(
            "kvp,knv->kpn", self.law.design, self.log_x[None] - self.centre[:, None]
        )
        return z

    @cached_property
    def bounds(self) -> tuple[Array, Array]:
        """Lower and upper bounds, each (P,)."""
        terms, exponents = self.z.shape[:2]
        low, high = EXPONENTS if terms > 1 else (-np.inf, np.inf)
        return np.r_[np.zeros(terms), np.full(exponents, low)], np.r_[
            np.full(terms, np.inf), np.full(exponents, high)
        ]

    def model(self, point: Array) -> tuple[Array, Array]:
        """Predictions (B, n) and their derivatives (B, P, n)."""
        terms, exponents, rows = self.z.shape
        jacobian = np.zeros((len(point), terms + exponents, rows))
        basis = jacobian[:, :terms]
        for k in range(terms):
            np.exp(point[:, terms:] @ self.z[k], out=basis[:, k])
        model = np.matmul(point[:, None, :terms], basis)[:, 0]
        for k, p in self.powers:
            jacobian[:, terms + p] += point[:, k, None] * basis[:, k] * self.z[k, p]
        return model, jacobian

    @cached_property
    def powers(self) -> list[tuple[int, int]]:
        """(term, exponent) pairs that occur in the law."""
        return [(int(k), int(p)) for k, p in np.argwhere(np.abs(self.law.design).sum(1) > 0)]

    def evaluate(self, point: Array, weights: Array) -> list[Array]:
        """Objective (B,), gradient (B, P), Hessian (B, P, P) and a positive scale of the curvature
        (B, P).
        """
        terms = self.z.shape[0]
        model, jacobian = self.model(point)
        delta, sigma = self.loss.threshold, self.sigma
        residual = (np.log(self.y / model) if self.loss.log else self.y - model) / sigma
        psi = np.clip(residual, -delta, delta)
        value = np.sum(weights * psi * (residual - psi / 2), axis=1)
        inner = np.abs(residual) <= delta
        slope = -weights * psi / sigma  # derivative of the loss by m, then its second derivative
        bend = weights * inner / sigma**2
        scale = weights * np.divide(psi, residual, out=np.ones_like(psi), where=~inner) / sigma**2
        if self.loss.log:
            bend = (bend - slope) / model**2
            slope /= model
            scale /= model**2
        hessian = np.matmul(jacobian * bend[:, None], jacobian.transpose(0, 2, 1))
        gradient = np.matmul(jacobian, slope[:, :, None])[:, :, 0]
        bent = jacobian[:, :terms] * slope[:, None]
        for k, p in self.powers:
            cross = bent[:, k] @ self.z[k, p]
            hessian[:, k, terms + p] += cross
            hessian[:, terms + p, k] += cross
            for other, q in self.powers:
                if other == k:
                    hessian[:, terms + p, terms + q] += point[:, k] * (
                        bent[:, k] @ (self.z[k, p] * self.z[k, q])
                    )
        return [value, gradient, hessian, np.einsum("bpn,bpn,bn->bp", jacobian, jacobian, scale)]
