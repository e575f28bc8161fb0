"""Readouts: ridge regression through an orthogonal factorisation in float64, with bounded memory."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import ReadoutWarning, ReservoirError

Array = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
ILL_CONDITIONED = 1e12


@dataclass
class Fit:
    """A readout: weights [outputs, features], and how well the data determine them.

    `condition` is the 1-norm condition number of the triangular factor, ridge included; `residual` [outputs] the root
    of the summed squares of the errors (with the ridge's share); `rank` is of the numerical factor.
    """

    weights: Array
    condition: float
    rank: int
    residual: Array
    samples: int


class RidgeFactor:
    """The triangular factor R of [features, targets], updated with chunks of rows: TSQR in a sequence.

    After all rows, [A Y] = Q R, so that min |A w - y| reads off R alone, and memory stays at a few times the square of
    the number of features. (Demmel, Grigori, Hoemmen, Langou, SIAM J. Sci. Comput. 34, 2012.)
    """

    def __init__(self, features: int, outputs: int) -> None:
        self.features, self.outputs = features, outputs
        self.samples = 0
        self._factor: Array = np.zeros((0, features + outputs))
        self._waiting: list[Array] = []
        self._rows = 0

    def add(self, features: Array, targets: Array) -> None:
        """Rows [samples, features] with their targets [samples, outputs]."""
        if features.shape[1] != self.features or targets.shape[1] != self.outputs or len(features) != len(targets):
            raise ReservoirError(
                f"found features {list(features.shape)} and targets {list(targets.shape)}; wanted "
                f"[samples, {self.features}] and [samples, {self.outputs}]"
            )
        self.samples += len(features)
        self._waiting.append(np.hstack([features, targets]))
        self._rows += len(features)
        if self._rows >= 2 * (self.features + self.outputs):
            self._reduce()

    def _reduce(self) -> None:
        self._factor = _triangle(np.vstack([self._factor, *self._waiting]))
        self._waiting, self._rows = [], 0

    def solve(self, ridge: float) -> Fit:
        """Weights that minimise |A w - y|^2 + ridge |w|^2; the ridge is rows sqrt(ridge) I below A.

        Warns: ReadoutWarning where the weights are hardly determined; where the rows determine them not at all and the
        ridge is 0, the solution of least norm is taken (by SVD).
        """
        if self.samples == 0:
            raise ReservoirError("the readout has no samples to learn from; wanted at least one")
        self._reduce()
        k = self.features
        factor = self._factor
        if ridge > 0:
            penalty = np.hstack([np.sqrt(ridge) * np.eye(k), np.zeros((k, self.outputs))])
            factor = _triangle(np.vstack([factor, penalty]))
        left: Array = factor[:k, :k]
        right: Array = factor[:k, k:]
        residual: Array = np.sqrt((factor[k:, k:] ** 2).sum(0))
        condition = _condition(left) if left.shape[0] == k else np.inf
        if condition < 1 / (_EPS * k):
            if condition > ILL_CONDITIONED:
                self._warn(condition, ridge, k)
            weights: Array = np.asarray(np.linalg.solve(left, right), np.float64)
            return Fit(weights.T.copy(), condition, k, residual, self.samples)
        weights, rank, missed = _least_norm(left, right, self.samples)
        self._warn(condition, ridge, rank)
        return Fit(weights.T.copy(), condition, rank, np.sqrt(residual**2 + missed), self.samples)

    def _warn(self, condition: float, ridge: float, rank: int) -> None:
        scale = float(np.abs(self._factor[:, : self.features]).max(initial=0.0)) ** 2
        remedy = f"wanted a ridge of about {1e-20 * scale or 1e-12:.0e} or more" if ridge < 1e-20 * scale else ""
        message = (
            f"the readout is {'rank deficient' if rank < self.features else 'ill-conditioned'}: condition number "
            f"{condition:.2e}, rank {rank} of {self.features} features, {self.samples} samples, ridge {ridge:g}; "
            f"cause: {self._cause()}. " + (remedy or "Use a larger ridge, more samples or fewer units")
        )
        warnings.warn(message, ReadoutWarning, stacklevel=4)

    def _cause(self) -> str:
        """The likeliest reason for a bad condition, from the factor's columns."""
        if self.samples < self.features:
            return f"fewer samples ({self.samples}) than features ({self.features})"
        columns = self._factor[:, : self.features]
        norms = np.linalg.norm(columns, axis=0)
        if (silent := np.flatnonzero(norms <= _EPS * norms.max())).size:
            return f"{silent.size} features are always zero (the first is feature {silent[0]})"
        apart = np.abs(np.diag(columns)) / norms[: len(columns)]
        weakest = int(apart.argmin())
        if apart[weakest] < 1e-10:
            return f"feature {weakest} is a combination of the ones before it to {apart[weakest]:.0e} of its size"
        return f"features differ in size by a factor of {norms.max() / norms.min():.0e} or depend on each other"


def _triangle(rows: Array) -> Array:
    """R of rows = Q R."""
    return np.asarray(np.linalg.qr(rows, mode="r"), np.float64)


def _condition(triangle: Array) -> float:
    """The 1-norm condition number of a triangular matrix; infinite where it is singular."""
    if not np.diag(triangle).all():
        return float("inf")
    with np.errstate(over="ignore", invalid="ignore"):
        inverse = np.linalg.inv(triangle)
        found = float(np.abs(triangle).sum(0).max() * np.abs(inverse).sum(0).max())
    return found if np.isfinite(found) else float("inf")


def _least_norm(left: Array, right: Array, samples: int) -> tuple[Array, int, Array]:
    """The least-squares solution of least norm, its rank, and the squares of what it misses of `right`."""
    u, s, vt = np.linalg.svd(left, full_matrices=False)
    rank = int((s > s.max(initial=0.0) * _EPS * max(samples, left.shape[1])).sum())
    seen = u[:, :rank].T @ right
    missed = np.maximum((right**2).sum(0) - (seen**2).sum(0), 0.0)
    return vt[:rank].T @ (seen / s[:rank, None]), rank, missed


class RLS:
    """Recursive least squares: the readout after every sample, with forgetting.

    The inverse correlation matrix is held as P = G G^T and updated in its square root (Potter's form; Bierman,
    Factorization Methods for Discrete Sequential Estimation, 1977), so that rounding cannot make it indefinite.

    Args:
        features, outputs: sizes.
        ridge: the weights' penalty before the first sample; P starts at I / ridge.
        forgetting: in (0, 1]; a sample n steps ago counts forgetting**n.
    """

    def __init__(self, features: int, outputs: int, *, ridge: float = 1e-6, forgetting: float = 1.0) -> None:
        if not 0 < forgetting <= 1 or not 0 < ridge < np.inf:
            raise ReservoirError(f"found ridge {ridge!r} and forgetting {forgetting!r}; wanted above 0, and in (0, 1]")
        self.weights: Array = np.zeros((outputs, features))
        self.forgetting = forgetting
        self._root: Array = np.eye(features) / np.sqrt(ridge)

    def update(self, features: Array, target: Array) -> Array:
        """Learns one sample (features [features], target [outputs]); returns the error before it [outputs].

        Raises: ReservoirError for NaN, infinity and wrong sizes; then nothing is learnt.
        """
        features, target = np.asarray(features, np.float64), np.asarray(target, np.float64).reshape(-1)
        if features.shape != (self.weights.shape[1],) or target.shape != (self.weights.shape[0],):
            raise ReservoirError(
                f"found {list(features.shape)} features and {list(target.shape)} targets; wanted "
                f"[{self.weights.shape[1]}] and [{self.weights.shape[0]}]"
            )
        if not (np.isfinite(features).all() and np.isfinite(target).all()):
            raise ReservoirError("a sample holds NaN or infinity; wanted finite numbers")
        f = self._root.T @ features
        a = self.forgetting + float(f @ f)
        k = self._root @ f
        error: Array = target - self.weights @ features
        self.weights += np.outer(error, k / a)
        self._root -= np.outer(k, f) / (a + np.sqrt(a * self.forgetting))
        self._root /= np.sqrt(self.forgetting)
        return error
