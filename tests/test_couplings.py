import itertools

import mlx.core as mx
import numpy as np
import pytest

from flowmlx.couplings import COUPLINGS, exact_ot, independent, squared_distances


def batches(n=64, d=2):
    keys = mx.random.split(mx.random.key(3), 2)
    return [mx.random.normal((n, d), key=k) for k in keys]


@pytest.mark.parametrize("name", COUPLINGS)
def test_every_point_is_used_exactly_once(name, key):
    x0, x1 = batches()
    for index in COUPLINGS[name](x0, x1, key=key):
        np.testing.assert_array_equal(np.sort(np.array(index)), np.arange(64))


@pytest.mark.parametrize("name", COUPLINGS)
def test_same_key_same_pairs(name, key):
    x0, x1 = batches()
    a, b = (COUPLINGS[name](x0, x1, key=key) for _ in range(2))
    for p, q in zip(a, b, strict=True):
        np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("name", COUPLINGS)
def test_batches_of_different_size_are_refused(name, key):
    with pytest.raises(ValueError, match="x0 has 3 samples and x1 4"):
        COUPLINGS[name](mx.zeros((3, 2)), mx.zeros((4, 2)), key=key)


def test_independent_keeps_the_order():
    i, j = independent(*batches())
    np.testing.assert_array_equal(i, np.arange(64))
    np.testing.assert_array_equal(j, np.arange(64))


def test_exact_ot_is_the_cheapest_of_all_permutations():
    x0, x1 = batches(n=6)
    i, j = exact_ot(x0, x1)
    cost = squared_distances(np.array(x0), np.array(x1))
    best = min(cost[np.arange(6), list(p)].sum() for p in itertools.permutations(range(6)))
    assert cost[np.array(i), np.array(j)].sum() == pytest.approx(best)


def test_exact_ot_on_a_line_sorts():
    x0, x1 = batches(d=1)
    i, j = exact_ot(x0, x1)
    a, b = np.array(x0[i])[:, 0], np.array(x1[j])[:, 0]
    np.testing.assert_array_equal(np.argsort(a), np.argsort(b))


def test_exact_ot_of_images_uses_all_pixels():
    x0 = mx.random.normal((16, 2, 2, 1), key=mx.random.key(1))
    shuffle = np.random.default_rng(0).permutation(16)
    i, j = exact_ot(x0, x0[mx.array(shuffle)])
    np.testing.assert_array_equal(np.array(i), shuffle[np.array(j)])


def test_exact_ot_refuses_nan():
    x0, x1 = batches()
    x1[3, 1] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity"):
        exact_ot(x0, x1)


def test_squared_distances_far_from_the_origin():
    x = np.array([[1e6, 0.0], [1e6 + 1, 0.0]])
    np.testing.assert_allclose(squared_distances(x, x), [[0, 1], [1, 0]])
