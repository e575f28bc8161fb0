"""Random reservoir weights, and the spectral radius as a computed number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import ReservoirError

Array = NDArray[np.float64]
DENSE_LIMIT = 1500
PATTERNS = ("balanced", "uniform")
_TINY = 1e-7  # of the norm: below it a computed radius cannot be told from zero


def spectral_radius(matrix: Array, *, tolerance: float = 1e-9) -> float:
    """The largest modulus of the eigenvalues of a square matrix.

    Exact cycles of the matrix's graph decide first: entries that lie on none do not count, so a nilpotent pattern gives
    exactly 0. Up to 1500 rows the eigenvalues are computed; above, an Arnoldi iteration on a power of the matrix runs
    until the residual of its Ritz pair is below `tolerance` (Saad, Numerical Methods for Large Eigenvalue Problems,
    ch. 6), and where it does not get there the eigenvalues are computed after all.

    Raises: ReservoirError for a matrix that is not square or holds NaN or infinity.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ReservoirError(f"the recurrent weights have shape {list(matrix.shape)}; wanted a square matrix")
    if not np.isfinite(matrix).all():
        raise ReservoirError("the recurrent weights hold NaN or infinity; wanted finite numbers")
    core = _cyclic_core(matrix)
    if core.size == 0:
        return 0.0
    norm = float(np.linalg.norm(core))
    found = _arnoldi(core / norm, tolerance) if len(core) > DENSE_LIMIT else None
    radius = float(np.abs(np.linalg.eigvals(core / norm)).max()) if found is None else found
    return 0.0 if radius < _TINY else radius * norm


def _cyclic_core(matrix: Array) -> Array:
    """The matrix without the rows that no cycle passes through because nothing comes in or goes out there."""
    pattern = matrix != 0
    kept = np.ones(len(matrix), bool)
    into, out = pattern.sum(1), pattern.sum(0)
    while True:
        ends = kept & ((into == 0) | (out == 0))
        if not ends.any():
            return matrix if kept.all() else matrix[np.ix_(kept, kept)]
        kept &= ~ends
        into = into - pattern[:, ends].sum(1)
        out = out - pattern[ends].sum(0)


def _arnoldi(matrix: Array, tolerance: float, power: int = 16, steps: int = 120) -> float | None:
    """The spectral radius by Arnoldi on matrix**power, or None where the residual stays above the tolerance.

    The power moves the eigenvalues at the rim of the disc apart, which plain Krylov spaces separate slowly.
    """
    basis = np.zeros((steps + 1, len(matrix)))
    basis[0] = np.random.default_rng(0).standard_normal(len(matrix))
    basis[0] /= np.linalg.norm(basis[0])
    hessenberg = np.zeros((steps + 1, steps))
    for k in range(steps):
        v = basis[k]
        for _ in range(power):
            v = matrix @ v
        for _ in range(2):  # Gram-Schmidt twice is enough
            h = basis[: k + 1] @ v
            v = v - h @ basis[: k + 1]
            hessenberg[: k + 1, k] += h
        hessenberg[k + 1, k] = np.linalg.norm(v)
        if hessenberg[k + 1, k] == 0:
            return None
        basis[k + 1] = v / hessenberg[k + 1, k]
        if k >= 20 and k % 10 == 0:
            values, vectors = np.linalg.eig(hessenberg[: k + 1, : k + 1])
            best = int(np.abs(values).argmax())
            largest = abs(values[best])
            if largest and hessenberg[k + 1, k] * abs(vectors[k, best]) <= tolerance * largest:
                return float(largest ** (1 / power))
    return None


def scaled(matrix: Array, radius: float) -> Array:
    """The matrix times the number that gives it a spectral radius. Raises ReservoirError for a nilpotent one."""
    if radius == 0:
        return np.zeros_like(matrix)
    found = spectral_radius(matrix)
    if found == 0:
        raise ReservoirError(
            f"the recurrent weights are nilpotent (no cycle among their {np.count_nonzero(matrix)} connections, or "
            f"none that counts): no factor gives them the spectral "
            f"radius {radius:g}; raise the connectivity or the size"
        )
    return matrix * (radius / found)


def random_recurrent(
    size: int, connectivity: float, rng: np.random.Generator, distribution: str, pattern: str = "balanced"
) -> Array:
    """Sparse random weights [size, size]: each is there with probability `connectivity`.

    With the pattern `uniform` they are there independently of each other. `balanced` is a stratified draw with the same
    probability for each: units have the same in-degree (or one of two neighbouring numbers, where the mean is not
    whole), and in each tile of a few rows and columns all rows have equally many weights, at places of their own. So no
    lane of a compiled step has nothing to do. Out-degrees vary as with the uniform pattern, or more where most tiles
    are empty (connectivity far below a weight per row of a tile). Below two tiles of rows nothing is gained, and the
    pattern is uniform. (Reservoirs of a fixed number of connections per unit: Lukosevicius, A practical guide to
    applying echo state networks, 2012, sec. 3.2.2.)

    Raises: ReservoirError for an unknown pattern or distribution.
    """
    if pattern not in PATTERNS:
        raise ReservoirError(f"unknown pattern {pattern!r}; wanted {' or '.join(PATTERNS)}")
    from echoc.compiler.targets.cpu.reservoir import EVEN_COLUMNS, EVEN_ROWS

    if pattern == "uniform" or size < 2 * EVEN_ROWS:
        mask = rng.random((size, size)) < connectivity
    else:
        mask = _balanced(size, connectivity, rng, EVEN_ROWS, EVEN_COLUMNS)
    return np.where(mask, draw(rng, (size, size), distribution), 0.0)


def _balanced(size: int, connectivity: float, rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.bool_]:
    """Where weights are, [size, size]: as many in every row of a tile of `rows` by `columns`.

    How many is drawn by systematic sampling along tiles in random order (Madow, Annals of Mathematical Statistics 20,
    1949): the mean of each tile is exact, and so is the sum of all up to the next whole number.
    """
    tiles = -(-size // columns)
    widths = np.minimum(columns, size - columns * np.arange(tiles))
    wanted = connectivity * widths
    least = np.floor(wanted).astype(np.int64)
    mask = np.zeros((size, tiles, columns), bool)
    place = np.arange(columns)
    start = rng.random()
    for begin in range(0, size, rows):
        order = rng.permutation(tiles)
        ends = start + np.cumsum((wanted - least)[order])
        passed = np.floor(ends).astype(np.int64)
        counts = least.copy()
        counts[order] += passed - np.concatenate([[0], passed[:-1]])
        start = ends[-1] % 1.0
        keys = rng.random((len(mask[begin : begin + rows]), tiles, columns))
        keys[:, place >= widths[:, None]] = 2.0  # columns beyond the last one
        chosen = np.broadcast_to(place < counts[:, None], keys.shape)
        np.put_along_axis(mask[begin : begin + rows], keys.argsort(2), chosen, 2)
    return mask.reshape(size, -1)[:, :size]


def draw(rng: np.random.Generator, shape: tuple[int, ...], distribution: str) -> Array:
    """Random numbers: `uniform` in [-1, 1], `normal`, or `bipolar` (-1 or 1). Raises ReservoirError."""
    if distribution == "uniform":
        return rng.uniform(-1, 1, shape)
    if distribution == "normal":
        return rng.standard_normal(shape)
    if distribution == "bipolar":
        return rng.choice(np.array([-1.0, 1.0]), shape)
    raise ReservoirError(f"unknown distribution {distribution!r}; wanted uniform, normal or bipolar")


def short(matrix: Array) -> Array:
    """The matrix rounded to float32 and back: its weights have 24 bits."""
    return matrix.astype(np.float32).astype(np.float64)
