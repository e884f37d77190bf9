import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from flowmlx.assignment import assign


def costs(kind, n):
    rng = np.random.default_rng(n)
    if kind == "uniform":
        return rng.uniform(size=(n, n))
    if kind == "integers with ties":
        return rng.integers(0, 4, (n, n)).astype(float)
    if kind == "all equal":
        return np.full((n, n), 3.0)
    if kind == "one outlier":
        cost = rng.uniform(size=(n, n))
        cost[0] += 1e12
        return cost
    x, y = rng.normal(size=(n, 2)), rng.normal(size=(n, 2)) ** 3
    scale, shift = {"plane": (1, 0), "tiny": (1e-20, 0), "huge": (1e20, 0), "negative": (1, -50)}[
        kind
    ]
    return scale * ((x[:, None] - y) ** 2).sum(-1) + shift


KINDS = [
    "uniform",
    "integers with ties",
    "all equal",
    "one outlier",
    "plane",
    "tiny",
    "huge",
    "negative",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 7, 200])
def test_assignment_costs_what_the_best_permutation_costs(kind, n):
    cost = costs(kind, n)
    i, j = assign(cost)
    np.testing.assert_array_equal(np.sort(i), np.arange(n))
    np.testing.assert_array_equal(np.sort(j), np.arange(n))
    best = cost[linear_sum_assignment(cost)].sum()
    assert cost[i, j].sum() == pytest.approx(best, rel=1e-12, abs=1e-12 * np.abs(cost).max())
