"""The linear assignment problem, exactly: which permutation costs least."""

import ctypes

import numpy as np

from flowmlx import entropic, native

# Regularisations of the annealed scaling, in units of the mean cost, and the rounds at each:
# measured to balance the time that it takes against the time that it saves.
ANNEALING, ROUNDS = (0.1, 0.02, 0.004), 5


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (i, j), each a permutation of range(n), with the least sum of `cost[i, j]`.

    `cost`: (n, n). Shortest augmenting paths (Jonker & Volgenant 1987) from approximate potentials
    of the columns, near which most paths are one arc long: at 512 points in the plane 5 ms in place
    of 35 by SciPy's, and 0.7 by those of assignment.c, which `native` compiles. Either way is exact
    up to rounding, 1e-16 of the largest cost; of permutations that cost the same they may choose
    different ones. Raises ValueError where a cost is not finite or the matrix is not square.
    """
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(f"cost has shape {cost.shape}; expected (n, n)")
    return np.arange(len(cost)), shortest_paths(cost, column_potentials(cost))


def shortest_paths(cost: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The columns of the rows in the best assignment, from column potentials (n,)."""
    compiled = native.library("assignment")
    if compiled is not None:
        square, potentials = np.ascontiguousarray(cost, np.float64), np.array(columns, np.float64)
        column_of, row_of = np.empty((2, len(cost)), np.int32)
        arrays = (
            x.ctypes.data_as(ctypes.c_void_p) for x in (square, potentials, column_of, row_of)
        )
        failure = compiled.assign(ctypes.c_int(len(cost)), *arrays)
        if failure == 0:
            return column_of
        if failure == 1:
            raise MemoryError(f"no memory for an assignment of {len(cost)} rows")

    from scipy.optimize import linear_sum_assignment

    # A potential changes the cost of every permutation alike. Rows need none: a path starts in its
    # row at whatever height.
    return linear_sum_assignment(cost - columns)[1]


def column_potentials(cost: np.ndarray) -> np.ndarray:
    """Approximate optimal column potentials (n,), zero where all costs are one number.

    Those of entropic plans with less and less regularisation, not to convergence: nothing rests on
    their accuracy. Raises ValueError where a cost is not finite.
    """
    least = cost.min()
    scale = cost.mean() - least if np.isfinite(least) else least
    if not np.isfinite(scale):
        raise ValueError("the costs of the assignment contain NaN or infinity, or add up to it")
    columns = np.zeros(len(cost))
    if not scale > 0:
        return columns
    # Large temporary arrays are what threads that plan side by side wait for: each is new memory.
    relative = np.empty(cost.shape, np.float32)
    scratch = np.empty_like(relative)
    np.divide(cost, scale, out=relative, casting="same_kind")
    relative -= np.float32(least / scale)
    for reg in ANNEALING:
        _, _, columns = entropic.sweep(
            lambda rows: relative[rows],
            cost.shape,
            columns,
            reg,
            rounds=ROUNDS,
            scratch=scratch,
        )
    return scale * columns
