"""The objective of a fit and its exact derivatives, for many fits at once.

Shapes: B points (restarts or resamples) on the same n rows, K terms, p exponents, P = K + p
parameters. A point is [c_1..c_K, e_1..e_p]: coefficients in centred units (about 1), then
exponents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.laws import EXPONENTS, Array, Law


@dataclass(frozen=True)
class Problem:
    """Minimise the weighted sum of rho(residual), rho(r) = r^2 / 2 or Huber's, the residual being
    log y - log m or y - m.
    """

    law: Law
    log_x: Array  # (n, variables)
    y: Array  # (n,), divided by scale
    centre: Array  # (K, variables): log x where a term equals its coefficient
    scale: float
    loss: str
    delta: float  # Huber's threshold; infinity for least squares

    @staticmethod
    def centred(law: Law, x: Array, y: Array, weights: Array, loss: tuple[str, float]) -> Problem:
        """The problem with log x and log y centred at their means; ``loss`` is its name and Huber's
        delta.
        """
        mean = np.average(np.log(np.c_[x, y]), axis=0, weights=weights)
        centre, scale = np.tile(mean[:-1], (len(law.coefficients), 1)), float(np.exp(mean[-1]))
        return Problem(
            law,
            np.log(x),
            y / scale,
            centre,
            scale,
            loss[0],
            loss[1] if loss[0] == "huber" else np.inf,
        )

    @property
    def log(self) -> bool:
        """Whether residuals are of log y."""
        return self.loss != "mse"

    def objective(self, value: Array, rows: float) -> Array:
        """What a Fit reports for a summed loss: Huber's sum, or the mean squared residual in units
        of y.
        """
        return (
            value
            if self.loss == "huber"
            else value * (2 / rows * (1.0 if self.log else self.scale**2))
        )

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
        residual = np.log(self.y / model) if self.log else self.y - model
        psi = np.clip(residual, -self.delta, self.delta)
        value = np.sum(weights * psi * (residual - psi / 2), axis=1)
        inner = np.abs(residual) <= self.delta
        slope = -weights * psi  # derivative of the loss by m, then its second derivative
        bend = weights * inner
        scale = weights * np.divide(psi, residual, out=np.ones_like(psi), where=~inner)
        if self.log:
            slope /= model
            bend = (bend + weights * psi) / model**2
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
