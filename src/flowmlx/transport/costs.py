"""Squared distances between points, the costs of transport, on the host in float64."""

import numpy as np

from flowmlx.solvers.arrays import as_rows
from flowmlx.transport.products import products

# Columns up to which distances are computed without a matrix product: as fast, on one thread, and
# nothing cancels.
FEW_COLUMNS = 16
# Part of x^2 + y^2 below which a distance from x^2 + y^2 - 2xy has lost digits that count.
CANCELLED = 1e-3


def flat_rows(x: np.ndarray, dtype: type = np.float64) -> np.ndarray:
    """Samples (n, ...) as rows (n, k) of `dtype`."""
    return x.astype(dtype, copy=False).reshape(len(x), -1)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (n, m), float64, between rows of `x` (n, ...) and `y` (m, ...).

    Raises ValueError where a value is not finite.
    """
    from scipy.spatial.distance import cdist

    x, y = flat_rows(as_rows(x, "x")), flat_rows(as_rows(y, "y"))
    if x.shape[1] <= FEW_COLUMNS:
        cost = cdist(x, y, "sqeuclidean")
        check_finite(cost.max())
        return cost
    # Distances are unchanged by a shift, and centring keeps x^2 + y^2 - 2xy from cancelling.
    centre = y.mean(0)
    near, far = x - centre, y - centre
    near_squares, far_squares = (near**2).sum(1), (far**2).sum(1)
    cost = products(-2 * near, far)
    cost += near_squares[:, None]
    cost += far_squares
    largest = near_squares.max() + far_squares.max()
    check_finite(largest)
    if not cost.min() > CANCELLED * largest:
        # Where it cancels all the same, as between points that are close, or beside one far away.
        cancelled = cost <= CANCELLED * (near_squares[:, None] + far_squares)
        for i in np.flatnonzero(cancelled.any(1)):
            j = np.flatnonzero(cancelled[i])
            cost[i, j] = cdist(x[i : i + 1], y[j], "sqeuclidean")[0]
    return cost


def mean_cost(x0: np.ndarray, x1: np.ndarray) -> float:
    """Mean of the squared distances, without computing them."""
    check_finite(x0.sum(), x1.sum())
    mean = x0.var(0).sum() + x1.var(0).sum() + ((x0.mean(0) - x1.mean(0)) ** 2).sum()
    check_finite(mean)
    return float(mean)


def check_finite(*numbers: float) -> None:
    """Refuse points by numbers that are finite only where the points are."""
    if not np.isfinite(numbers).all():
        raise ValueError(
            "the points to couple contain NaN or infinity, or squares beyond float64; clean them"
        )
