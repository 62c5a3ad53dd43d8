"""Linear mixed model with independent random coefficients, by restricted maximum likelihood, and Kenward-Roger's small-sample inference. No dependence on a
fitting library: the model has two random effects, so that the fit is exact where a general optimizer gives up.

For each group i, y_i = X_i β + Z_i b_i + e with Var b_ik = σ_k², independent of each other, and e ~ N(0, σ²). With λ_k = σ_k² / σ², V_i = σ² (I + Z_i Λ Z_i').
σ² and β are profiled out and -2 log restricted likelihood is minimized over λ (Bates, Mächler, Bolker & Walker 2015, J. Stat. Softw. 67(1), eqs. 34-42).

λ_k may be negative as long as every V_i is positive definite: groups then differ less than sampling noise alone would make them. Where an estimate is cut off
at 0 instead, the standard error is too large whenever that happens, and the test rejects as few as 0.3 % of true nulls with four groups (simulated).

Standard errors and degrees of freedom are Kenward & Roger's (1997, Biometrics 53:983) with V linear in (σ_k², σ²): Φ + 2 Φ U Φ for the covariance of β, and for
one coefficient 2 v² / (g' W g), W the inverse of the expected information, g the gradient of its variance v. On balanced data that is groups - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize

from drift_cli.analysis.table import FloatArray

_STARTS = ((1.0, 0.1), (50.0, 1.0))
"""λ to start from, of the first random effect and of all others."""


@dataclass(frozen=True, eq=False)
class Data:
    """One group: y (n,), X (n, p), Z (n, q)."""

    y: FloatArray
    x: FloatArray
    z: FloatArray


@dataclass(frozen=True, eq=False)
class Fit:
    """Estimates: beta and its Kenward-Roger standard errors and degrees of freedom, (p,) each; `plain_error` without the correction."""

    beta: FloatArray
    error: FloatArray
    plain_error: FloatArray
    df: FloatArray
    components: FloatArray
    """Variances of the random effects (q,); negative where groups differ less than by sampling noise."""
    residual: float
    criterion: float
    """-2 log restricted likelihood at the optimum."""


@dataclass(frozen=True, eq=False)
class _Products:
    """Cross products by group, G of them: all that the likelihood needs."""

    zz: FloatArray
    zx: FloatArray
    zy: FloatArray
    xx: FloatArray
    xy: FloatArray
    yy: float
    n: int

    @classmethod
    def of(cls, groups: Sequence[Data]) -> _Products:
        return cls(
            zz=np.stack([g.z.T @ g.z for g in groups]),
            zx=np.stack([g.z.T @ g.x for g in groups]),
            zy=np.stack([g.z.T @ g.y for g in groups]),
            xx=np.sum([g.x.T @ g.x for g in groups], axis=0),
            xy=np.sum([g.x.T @ g.y for g in groups], axis=0),
            yy=float(np.sum([g.y @ g.y for g in groups])),
            n=sum(len(g.y) for g in groups),
        )


def fit(groups: Sequence[Data]) -> Fit:
    """Fit the model. The groups' X together must have full rank, and some group must vary."""
    products = _Products.of(groups)
    ratio = _minimize(products)
    criterion, beta, residual = _profile(products, ratio)
    components = ratio * residual
    error, plain_error, df = _kenward_roger(groups, components, residual)
    return Fit(beta, error, plain_error, df, components, residual, float(criterion))


def _minimize(products: _Products) -> FloatArray:
    """λ (q,) at the smallest criterion. Searched in log(λ - its lower end), the end being where V stops being positive definite."""
    end = -1 / products.zz.diagonal(axis1=1, axis2=2).max(axis=0)

    def criterion(log: Any) -> float:
        return _profile(products, end + np.exp(np.clip(log, -30.0, 30.0)))[0]

    found = []
    for first, others in _STARTS:
        start: Any = np.log(np.array([first] + [others] * (len(end) - 1)) - end)
        found.append(optimize.minimize(criterion, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 2000}))
    best = min(found, key=lambda one: float(one.fun))
    return np.asarray(end + np.exp(np.clip(best.x, -30.0, 30.0)))


def _profile(products: _Products, ratio: FloatArray) -> tuple[float, FloatArray, float]:
    """The criterion at λ (q,), with β and σ² there; infinite where V is not positive definite."""
    inner = np.eye(len(ratio)) + products.zz * ratio[None, None, :]
    if (np.linalg.eigvals(inner).real <= 0).any():
        return np.inf, np.zeros(len(products.xx)), 1.0
    shrink = ratio[:, None] * np.linalg.inv(inner)
    xx = products.xx - np.einsum("gqi,gqr,grj->ij", products.zx, shrink, products.zx)
    xy = products.xy - np.einsum("gqi,gqr,gr->i", products.zx, shrink, products.zy)
    yy = products.yy - np.einsum("gq,gqr,gr->", products.zy, shrink, products.zy)
    beta = np.linalg.solve(xx, xy)
    df = products.n - len(beta)
    residual = max(float(yy - xy @ beta) / df, 1e-300)
    spread = float(np.linalg.slogdet(inner)[1].sum() + np.linalg.slogdet(xx)[1])
    return float(df * (1 + np.log(2 * np.pi * residual)) + spread), beta, residual


def _kenward_roger(groups: Sequence[Data], components: FloatArray, residual: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Corrected and plain standard errors and degrees of freedom (p,)."""
    k, p = len(components) + 1, groups[0].x.shape[1]
    first, second = np.zeros((k, p, p)), np.zeros((k, k, p, p))
    trace, precision = np.zeros((k, k)), np.zeros((p, p))
    for group in groups:
        parts = [np.outer(z, z) for z in group.z.T] + [np.eye(len(group.y))]
        inverse = np.linalg.inv(np.tensordot(np.append(components, residual), np.stack(parts), axes=1))
        left = [inverse @ part for part in parts]
        weighted = inverse @ group.x
        precision += group.x.T @ weighted
        for i in range(k):
            first[i] -= weighted.T @ parts[i] @ weighted
            for j in range(k):
                second[i, j] += weighted.T @ parts[i] @ left[j] @ weighted
                trace[i, j] += np.sum(left[i] * left[j].T)
    phi = np.linalg.inv(precision)
    moved = phi @ first
    information = (trace - 2 * np.einsum("ab,ijba->ij", phi, second) + np.einsum("iab,jba->ij", moved, moved)) / 2
    covariance = np.linalg.pinv(information)
    adjustment = np.einsum("ij,ijab->ab", covariance, second - np.einsum("iab,bc,jcd->ijad", first, phi, first))
    corrected = phi + 2 * phi @ adjustment @ phi
    gradient = -np.einsum("ab,ibc,ca->ia", phi, first, phi)
    df = 2 * np.diag(phi) ** 2 / np.einsum("ia,ij,ja->a", gradient, covariance, gradient)
    return np.sqrt(np.diag(corrected)), np.sqrt(np.diag(phi)), df
