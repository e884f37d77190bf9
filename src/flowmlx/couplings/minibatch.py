"""Couplings between two batches: in the order drawn, and by exact optimal transport."""

import mlx.core as mx
import numpy as np

from flowmlx.couplings.host import HostCoupling, Pairs, Points, even
from flowmlx.keys import generator
from flowmlx.solvers.arrays import as_points, check_number
from flowmlx.transport.assignment import assign
from flowmlx.transport.costs import squared_distances


def independent(x0: Points, x1: Points, *, key: mx.array | None = None):
    """Pair in the order drawn: the product coupling, where both batches are independent draws.

    `x0`: (n, ...), `x1`: (m, ...). Points of the smaller batch are repeated, as by `exact_ot`.
    """
    n, m = (len(as_points(x, name)) for x, name in ((x0, "x0"), (x1, "x1")))
    i, j = even(n, m, None if key is None else generator(key))
    return mx.array(i), mx.array(j)


@HostCoupling
def exact_ot(x0: np.ndarray, x1: np.ndarray, *, rng: np.random.Generator | None) -> Pairs:
    """Pair points so that the total squared distance is smallest: exact minibatch OT.

    The optimal plan between two batches of equal size is a permutation and is used as one: each
    point is in exactly one pair. (Tong et al. 2024, arXiv 2302.00482, section 3.4, draw pairs from
    the plan with replacement.) If one batch is smaller, its points are repeated up to the size of
    the larger one. If this size is not a multiple, the points that are repeated once more are drawn
    with the key, which is then required.
    """
    i, j = even(len(x0), len(x1), rng)
    rows, columns = assign(squared_distances(x0[i], x1[j]))
    return i[rows], j[columns]


def partial(mass: float = 0.9) -> HostCoupling:
    """Make the coupling of least total cost among those of a share `mass` of the points: exact.

    The rest of both batches is left out: max(n, m) points make round(mass max(n, m)) pairs
    (Caffarelli & McCann 2010). The points of a smaller batch are repeated, as by `exact_ot`. Raises
    ValueError unless 0 < mass <= 1, and where no pair is left.
    """
    expected = "a share of the points above 0, at most 1"
    mass = check_number(mass, "mass", expected, lambda mass: 0 < mass <= 1)

    def pair(x0: np.ndarray, x1: np.ndarray, *, rng: np.random.Generator | None) -> Pairs:
        i, j = even(len(x0), len(x1), rng)
        cost, size = squared_distances(x0[i], x1[j]), len(i)
        kept = round(mass * size)
        if kept == 0:
            raise ValueError(f"mass {mass} of {size} points is no pair; give a larger mass")
        # Each of size - kept dummies on either side takes a point of the other side for nothing;
        # two dummies never meet, as parting them also parts a real pair.
        padded = np.zeros((2 * size - kept,) * 2)
        padded[:size, :size] = cost
        padded[size:, size:] = cost.max() or 1.0
        rows, columns = assign(padded)
        real = (rows < size) & (columns < size)
        return i[rows[real]], j[columns[real]]

    return HostCoupling(pair)
