"""Signals that reservoirs are measured on, integrated finely enough that the data do not limit the result."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_RUNAWAY = 10.0  # NARMA-10 stays below 2 unless it grows without end
LORENZ_EXPONENT = 0.9056  # the largest Lyapunov exponent of (10, 28, 8/3)


def mackey_glass(steps: int, *, delay: float = 17.0, substep: float = 0.1, seed: int = 0, discard: int = 1000) -> Array:
    """x' = 0.2 x(t-17) / (1 + x(t-17)^10) - 0.1 x, [steps, 1], one per unit of time, after `discard` units.

    Fourth-order Runge-Kutta; the delayed values at half steps are interpolated by cubics through the four nearest
    points, so that the order stays four. The history is constant, drawn from the seed around 1.2.
    """
    per_unit = round(1 / substep)
    lag = round(delay / substep)
    total = (steps + discard) * per_unit
    x = np.empty(total + lag + 1)
    x[: lag + 1] = 1.2 + 0.2 * (np.random.default_rng(seed).random() - 0.5)
    h = 1.0 / per_unit

    def slope(now: float, then: float) -> float:
        return 0.2 * then / (1 + then**10) - 0.1 * now

    for i in range(lag, lag + total):
        then, later = x[i - lag], x[i - lag + 1]
        before, after = x[max(i - lag - 1, 0)], x[i - lag + 2]
        middle = (9 * (then + later) - before - after) / 16
        a = slope(x[i], then)
        b = slope(x[i] + h / 2 * a, middle)
        c = slope(x[i] + h / 2 * b, middle)
        d = slope(x[i] + h * c, later)
        x[i + 1] = x[i] + h / 6 * (a + 2 * b + 2 * c + d)
    return x[lag + (discard + 1) * per_unit :: per_unit][:steps, None].copy()


def lorenz(steps: int, *, h: float = 0.02, substeps: int = 20, seed: int = 0, discard: int = 2000) -> Array:
    """The Lorenz system (10, 28, 8/3), [steps, 3], every `h`, from a random start on the attractor.

    Fourth-order Runge-Kutta at h / substeps = 0.001, Richardson-extrapolated to order five in each step of h: below
    1e-9 over a unit of time.
    """
    x, y, z = (float(v) for v in np.array([1.0, 1.0, 25.0]) + np.random.default_rng(seed).standard_normal(3))
    out = np.empty((steps, 3))
    for i in range(-discard, steps):
        coarse, fine = _lorenz((x, y, z), h, max(substeps // 2, 1)), _lorenz((x, y, z), h, substeps)
        x, y, z = (f + (f - c) / 15 for f, c in zip(fine, coarse, strict=True))
        if i >= 0:
            out[i] = x, y, z
    return out


def _lorenz(state: tuple[float, float, float], h: float, substeps: int) -> tuple[float, float, float]:
    """Substeps of fourth-order Runge-Kutta over a time h."""
    x, y, z = state
    k = h / substeps
    for _ in range(substeps):
        a, b, c = 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z
        p, q, r = x + k / 2 * a, y + k / 2 * b, z + k / 2 * c
        d, e, f = 10 * (q - p), p * (28 - r) - q, p * q - 8 / 3 * r
        p, q, r = x + k / 2 * d, y + k / 2 * e, z + k / 2 * f
        g, i, j = 10 * (q - p), p * (28 - r) - q, p * q - 8 / 3 * r
        p, q, r = x + k * g, y + k * i, z + k * j
        u, v, w = 10 * (q - p), p * (28 - r) - q, p * q - 8 / 3 * r
        x += k / 6 * (a + 2 * d + 2 * g + u)
        y += k / 6 * (b + 2 * e + 2 * i + v)
        z += k / 6 * (c + 2 * f + 2 * j + w)
    return x, y, z


def narma10(steps: int, seed: int = 0) -> tuple[Array, Array]:
    """NARMA-10: inputs uniform in [0, 0.5] and outputs, [steps, 1] each; y at a row depends on inputs before it.

    Some draws run away, three of a hundred of six thousand steps: these are drawn again.
    """
    rng = np.random.default_rng(seed)
    while True:
        u, y = rng.uniform(0, 0.5, steps), np.zeros(steps)
        for t in range(9, steps - 1):
            y[t + 1] = 0.3 * y[t] + 0.05 * y[t] * y[t - 9 : t + 1].sum() + 1.5 * u[t - 9] * u[t] + 0.1
            if y[t + 1] > _RUNAWAY:
                break
        else:
            return u[:, None], y[:, None]
