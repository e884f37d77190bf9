"""The linear assignment problem, exactly: which permutation costs least."""

import numpy as np

# Regularisation in units of the mean cost, and rounds of scaling at each: measured to balance the
# time that the rounds take against the time that they save.
ANNEALING, ROUNDS = (0.3, 0.1, 0.03, 0.01), 2


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (i, j), each a permutation of range(n), with the least sum of `cost[i, j]`.

    `cost`: (n, n), finite. SciPy's shortest augmenting paths (Crouse 2016), on costs from which
    approximate potentials have been taken. A potential per row and column changes every
    permutation's cost alike, so the answer stays exact; near the optimal potentials most paths are
    one arc long, which saves most of the time (78 -> 24 ms at 512 points in the plane).
    """
    from scipy.optimize import linear_sum_assignment

    reduced = cost - sinkhorn_potentials(cost)
    reduced -= reduced.min(1, keepdims=True)
    return linear_sum_assignment(reduced)


def sinkhorn_potentials(cost: np.ndarray) -> np.ndarray:
    """Approximate optimal column potentials (n,) by annealed Sinkhorn scaling in the log domain.

    Sinkhorn's algorithm for entropic transport (Cuturi 2013); float32, as nothing rests on its
    accuracy. Zero where all costs are one number.
    """
    scale = cost.mean() - cost.min()
    column = np.zeros(len(cost), np.float32)
    if not scale > 0:
        return column
    cost = ((cost - cost.min()) / scale).astype(np.float32)
    for eps in ANNEALING:
        for _ in range(ROUNDS):
            row = -eps * _log_sum_exp((column - cost) / np.float32(eps), axis=1)
            column = -eps * _log_sum_exp((row[:, None] - cost) / np.float32(eps), axis=0)
    return scale * column.astype(np.float64)


def _log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    """log(sum(exp(x))) along `axis`; overwrites `x`."""
    top = x.max(axis, keepdims=True)
    x -= top
    np.exp(x, out=x)
    return top.squeeze(axis) + np.log(x.sum(axis))
