"""Couplings: which source point meets which data point.

A coupling is a function `(x0, x1, *, key) -> (i, j)`, two index arrays: pair k joins x0[i[k]] and
x1[j[k]]. Indices instead of points let labels and other columns follow by gathering.
"""

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from flowmlx.assignment import assign

Coupling = Callable[..., tuple[mx.array, mx.array]]


def independent(x0: mx.array, x1: mx.array, *, key: mx.array | None = None):
    """Pair in the order drawn: the product coupling, where both batches are independent draws.

    `x0`, `x1`: (batch, ...). Raises ValueError where the batches differ in size.
    """
    _check_sizes(x0, x1)
    i = mx.arange(x0.shape[0])
    return i, i


def exact_ot(x0: mx.array, x1: mx.array, *, key: mx.array | None = None):
    """Pair by the assignment of least total squared distance: exact minibatch optimal transport.

    The optimal plan between two uniform batches of one size is a permutation, and it is used as
    one: no point is dropped or repeated (Tong et al. 2024, arXiv 2302.00482, section 3.4, where
    pairs are drawn from the plan with replacement). `x0`, `x1`: (batch, ...). Runs on the host.
    Raises ValueError where the batches differ in size or a point is not finite.
    """
    _check_sizes(x0, x1)
    i, j = assign(squared_distances(np.array(x0), np.array(x1)))
    return mx.array(i), mx.array(j)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (n, m), float64, between rows of `x` (n, ...) and `y` (m, ...).

    Raises ValueError where a value is not finite.
    """
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    y = np.asarray(y, np.float64).reshape(len(y), -1)
    # Distances are unchanged by a shift, and centring keeps x^2 + y^2 - 2xy from cancelling.
    centre = y.mean(0)
    x, y = x - centre, y - centre
    cost = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    if not np.isfinite(cost).all():
        raise ValueError("the points to couple contain NaN or infinity; clean the data first")
    return np.maximum(cost, 0)


def _check_sizes(x0: mx.array, x1: mx.array) -> None:
    if x0.shape[0] != x1.shape[0]:
        raise ValueError(
            f"x0 has {x0.shape[0]} samples and x1 {x1.shape[0]}; this coupling pairs them one to "
            "one, so draw batches of the same size"
        )


COUPLINGS: dict[str, Coupling] = {"independent": independent, "exact_ot": exact_ot}
