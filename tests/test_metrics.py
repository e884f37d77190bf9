import itertools
import math
import tracemalloc

import mlx.core as mx
import numpy as np
import pytest
import scipy.stats
from scipy.optimize import linprog
from scipy.spatial.distance import cdist

from flowmlx import metrics
from flowmlx.metrics import (
    classifier_two_sample_test,
    column_wasserstein,
    energy_distance,
    normalised_path_energy,
    path_energy,
    rbf_mmd,
    sliced_wasserstein,
    wasserstein,
)


def sliced(x, y, **options):
    return sliced_wasserstein(x, y, key=mx.random.key(0), **options)


DISTANCES = {
    "wasserstein": wasserstein,
    "sliced": sliced,
    "column": column_wasserstein,
    "energy": energy_distance,
    "mmd": rbf_mmd,
}


SHIFT = np.array([1.0, 2, 2, 4])  # of length 5


def gaussian(n, d, seed=0, mean=0.0):
    return np.random.default_rng(seed).normal(mean, size=(n, d))


def normal_quantiles(n, mean=0.0, std=1.0):
    """A sample of N(mean, std^2) without sampling noise."""
    return scipy.stats.norm.ppf((np.arange(n) + 0.5) / n, mean, std)


# What holds for every distance


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_the_same_points_in_another_order_are_at_distance_0(distance):
    x = gaussian(60, 3, mean=1e4)
    np.testing.assert_allclose(distance(x, x), 0, atol=1e-12)
    # Means over pairs add up in another order, and the root of the MMD magnifies the difference.
    np.testing.assert_allclose(distance(x, x[::-1]), 0, atol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_distances_are_symmetric_and_grow_with_a_shift(distance):
    x, y = gaussian(40, 2), gaussian(50, 2, seed=1)
    np.testing.assert_allclose(distance(x, y + 3), distance(y + 3, x), rtol=1e-9)
    assert np.all(distance(x, y) < 0.5 * distance(x, y + 3))


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_every_point_twice_is_the_same_sample(distance):
    x, y = gaussian(30, 2), gaussian(40, 2, seed=1, mean=0.5)
    options = {"bandwidth": 1.0} if distance is rbf_mmd else {}
    expected = distance(x, y, **options)
    np.testing.assert_allclose(distance(np.repeat(x, 2, 0), y, **options), expected, rtol=1e-9)


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_mlx_arrays_and_vectors_are_samples_too(distance):
    x, y = gaussian(30, 1).astype(np.float32), gaussian(30, 1, seed=1).astype(np.float32)
    expected = distance(x, y)
    np.testing.assert_array_equal(distance(mx.array(x), mx.array(y)), expected)
    np.testing.assert_array_equal(distance(x[:, 0], mx.array(y)[:, 0]), expected)


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_samples_that_cannot_be_compared(distance):
    x = gaussian(8, 2)
    with pytest.raises(ValueError, match="x has 2 columns and y 3"):
        distance(x, gaussian(8, 3))
    with pytest.raises(ValueError, match=r"y has shape \(0, 2\); expected \(n, d\) or \(n,\)"):
        distance(x, x[:0])
    with pytest.raises(ValueError, match=r"x has shape \(2, 2, 2\); expected"):
        distance(x.reshape(2, 2, 2, 2)[0], x)
    bad = np.where(np.arange(8)[:, None] == 5, np.nan, x)
    with pytest.raises(ValueError, match="y holds NaN or infinity in 1 of 8 samples, first in num"):
        distance(x, bad)


# Wasserstein


@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_wasserstein_is_the_best_of_all_permutations(p):
    x, y = gaussian(6, 3), gaussian(6, 3, seed=1, mean=0.3)
    cost = cdist(x, y) ** p
    best = min(cost[range(6), order].mean() for order in itertools.permutations(range(6)))
    assert wasserstein(x, y, p=p) == pytest.approx(best ** (1 / p), rel=1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_of_a_translation_is_its_length(p):
    x = gaussian(200, 4)
    assert wasserstein(x, x[::-1] + SHIFT, p=p) == pytest.approx(5, rel=1e-12)


def test_wasserstein_defaults_to_w2_of_gaussians():
    x, y = normal_quantiles(400), normal_quantiles(400, 3, 2)
    assert wasserstein(x, y) == pytest.approx(math.hypot(3, 2 - 1), rel=2e-3)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("sizes", [(4, 6), (6, 4), (50, 49), (7, 120)])
def test_wasserstein_of_unequal_sizes_solves_the_linear_programme(sizes, p):
    n, m = sizes
    x, y = gaussian(n, 2), gaussian(m, 2, seed=1)
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    plan = linprog(
        (cdist(x, y) ** p).ravel(),
        A_eq=np.concatenate([rows, columns]),
        b_eq=[1 / n] * n + [1 / m] * m,
    )
    assert wasserstein(x, y, p=p) == pytest.approx(plan.fun ** (1 / p), rel=1e-9)


POT = {
    (300, 300, 2): 0.7702703513941568,
    (300, 200, 2): 0.7647827971323591,
    (500, 499, 1): 0.7909517109047562,
    (40, 1000, 2): 0.7472444780917178,
}


@pytest.mark.parametrize(("n", "m", "p"), POT)
def test_wasserstein_is_that_of_pot(n, m, p):
    """Values of POT 0.9.7, `ot.emd2(ones / n, ones / m, ot.dist(x, y, "euclidean") ** p)`."""
    k = np.arange(1, n + 1)[:, None] * [1, 2, 3]
    x, y = np.sin(k), np.cos(1.7 * np.arange(1, m + 1)[:, None] * [3, 1, 2]) + 0.3
    assert wasserstein(x, y, p=p) == pytest.approx(POT[n, m, p] ** (1 / p), rel=1e-12)


@pytest.mark.parametrize("distance", [wasserstein, sliced])
def test_an_order_that_is_none(distance):
    for p in (0.5, 0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="expected a finite order >= 1, such as 2"):
            distance(gaussian(4, 2), gaussian(4, 2), p=p)


@pytest.mark.parametrize("sizes", [(50, 50), (50, 51), (7, 120), (1, 9), (30, 45)])
def test_column_wasserstein_agrees_with_scipy(sizes):
    x, y = gaussian(sizes[0], 3), gaussian(sizes[1], 3, seed=1) + np.array([0, 1, -5])
    expected = [scipy.stats.wasserstein_distance(a, b) for a, b in zip(x.T, y.T, strict=True)]
    np.testing.assert_allclose(column_wasserstein(x, y), expected, rtol=1e-10)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("size", [24, 36])
def test_sliced_wasserstein_in_one_dimension_is_wasserstein(p, size):
    x, y = gaussian(24, 1), gaussian(size, 1, seed=1)
    assert sliced(x, y, p=p) == pytest.approx(wasserstein(x, y, p=p), rel=1e-9)


def test_sliced_wasserstein_of_a_translation():
    # W_2(u x, u (x + s))^2 = (u s)^2, of mean |s|^2 / d over the sphere.
    x = gaussian(10, 4)
    assert sliced(x, x + SHIFT, projections=20_000) == pytest.approx(5 / 2, rel=0.02)


def test_sliced_wasserstein_is_fixed_by_its_key():
    x, y = gaussian(20, 3), gaussian(20, 3, seed=1)
    one, again, other = (sliced_wasserstein(x, y, key=mx.random.key(k)) for k in (1, 1, 2))
    assert one == again != other


def test_sliced_wasserstein_needs_a_projection():
    with pytest.raises(ValueError, match="projections is 0; expected an integer >= 1"):
        sliced(gaussian(4, 2), gaussian(4, 2), projections=0)


# Energy distance and MMD


def test_energy_distance_of_shifted_normals():
    # X - Y is N(1, 2), so E|X - Y| is the mean of a folded normal; E|X - X'| = 2 / sqrt(pi).
    x, y = normal_quantiles(1000), normal_quantiles(1000, 1)
    between = float(scipy.stats.foldnorm(1 / math.sqrt(2), scale=math.sqrt(2)).mean())
    assert energy_distance(x, y) == pytest.approx(2 * between - 4 / math.sqrt(math.pi), rel=5e-3)


@pytest.mark.parametrize("sizes", [(50, 50), (20, 71)])
def test_energy_distance_is_the_square_of_scipys(sizes):
    x, y = gaussian(sizes[0], 1)[:, 0], gaussian(sizes[1], 1, seed=1, mean=0.2)[:, 0]
    expected = scipy.stats.energy_distance(x, y) ** 2
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_energy_distance_in_the_plane():
    # Two points against one: 2 (3 + 5) / 2 - (0 + 4 + 4 + 0) / 4 - 0.
    assert energy_distance(np.array([[3.0, 0], [3, 4]]), np.zeros((1, 2))) == pytest.approx(6)


def test_blocks_bound_memory_and_do_not_change_the_result(monkeypatch):
    x, y = gaussian(1500, 2), gaussian(1501, 2, seed=1, mean=0.1)
    whole = energy_distance(x, y)
    monkeypatch.setattr(metrics, "_BLOCK", 50_000)
    tracemalloc.start()
    blocks = energy_distance(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert blocks == pytest.approx(whole, rel=1e-9)
    assert peak < 3e6  # all distances at once are 18 MB


def test_mmd_of_two_points():
    expected = math.sqrt(2 - 2 * math.exp(-(5**2) / (2 * 4**2)))
    assert rbf_mmd(np.zeros((1, 2)), np.array([[3.0, 4]]), bandwidth=4) == pytest.approx(expected)


def test_mmd_of_shifted_normals():
    # The kernel is a Gaussian of variance b^2, and convolves with that of X - Y.
    b, shift = 1.5, 1.0
    x, y = normal_quantiles(1000), normal_quantiles(1000, shift)
    scale = 2 * b / math.sqrt(b**2 + 2)
    expected = math.sqrt(scale * (1 - math.exp(-(shift**2) / (2 * (b**2 + 2)))))
    assert rbf_mmd(x, y, bandwidth=b) == pytest.approx(expected, rel=2e-3)


def test_mmd_bandwidth_defaults_to_the_median_distance():
    x, y = np.array([0.0, 1.0]), np.array([5.0])  # distances 1, 4, 5
    assert rbf_mmd(x, y) == pytest.approx(rbf_mmd(x, y, bandwidth=4.0), rel=1e-12)


@pytest.mark.parametrize("bandwidth", [0, -1, float("nan")])
def test_mmd_needs_a_bandwidth_above_0(bandwidth):
    with pytest.raises(ValueError, match="expected a length above 0"):
        rbf_mmd(gaussian(4, 2), gaussian(4, 2), bandwidth=bandwidth)


# Classifier two-sample test


def two_sample_test(x, y, key=0):
    return classifier_two_sample_test(x, y, key=mx.random.key(key))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_two_sample_test_has_the_mean_and_deviation_of_all_splits(n):
    points = gaussian(2 * n, 2, seed=n)
    splits = [list(split) for split in itertools.combinations(range(2 * n), n)]
    tests = [two_sample_test(points[s], np.delete(points, s, 0)) for s in splits]
    accuracies = [test.accuracy for test in tests]
    for test in tests:
        assert test.expected == pytest.approx(np.mean(accuracies), rel=1e-12)
        assert test.standard_error == pytest.approx(np.std(accuracies), rel=1e-9)


@pytest.mark.parametrize(
    ("sizes", "coins"), [((70, 200), False), ((200, 70), True)], ids=["distinct", "ties"]
)
def test_two_sample_test_of_one_distribution(sizes, coins):
    """Also where all points have many equals, of which each must find another."""
    repeats, tests = 400, []
    for k in range(repeats):
        x, y = (gaussian(n, 1, seed=seed) for n, seed in zip(sizes, (k, 1000 + k), strict=True))
        tests.append(two_sample_test(*((x > 0, y > 0) if coins else (x, y)), key=k))
    z = np.array([(test.accuracy - test.expected) / test.standard_error for test in tests])
    assert np.abs(z).max() < 4.5
    assert z.mean() == pytest.approx(0, abs=4.5 / np.sqrt(repeats))
    assert z.std() == pytest.approx(1, abs=4.5 / np.sqrt(2 * repeats))
    p_values = [test.p_value for test in tests]
    assert np.mean(p_values) == pytest.approx(0.5, abs=4.5 / np.sqrt(12 * repeats))
    assert tests[0].expected == pytest.approx((min(sizes) - 1) / (2 * min(sizes) - 1))


def test_two_sample_test_of_shifted_normals():
    # With many points the accuracy is the mean of (f^2 + g^2) / (f + g)^2 over (f + g) / 2: the
    # label of a point and that of its nearest are independent draws given the place.
    shift, place = 1.5, np.linspace(-8, 10, 4001)
    f, g = scipy.stats.norm.pdf(place), scipy.stats.norm.pdf(place, shift)
    expected = np.sum((f**2 + g**2) / (f + g)) / 2 * (place[1] - place[0])
    test = two_sample_test(gaussian(20_000, 1), gaussian(20_000, 1, seed=1, mean=shift))
    assert test.accuracy == pytest.approx(expected, abs=4 * test.standard_error)
    assert test.accuracy > 0.6
    assert test.p_value < 1e-9


def test_two_sample_test_tells_all_or_nothing():
    x = gaussian(50, 3)
    for first, second in ((x, x), (x[:20], x), (x, x[:20])):
        apart = two_sample_test(first, second + 100)
        assert apart.accuracy == 1
        assert apart.p_value < 1e-6
    copies = two_sample_test(x, x + 1e-6)
    assert copies.accuracy == 0
    assert copies.p_value > 1 - 1e-9


def test_two_sample_test_takes_other_points_of_the_larger_sample_for_other_keys():
    x, y = gaussian(50, 1), gaussian(200, 1, seed=1, mean=0.5)
    one, again, other = (two_sample_test(mx.array(x), y, key=k) for k in (1, 1, 2))
    assert one == again != other


def test_two_sample_test_needs_two_of_each():
    with pytest.raises(ValueError, match="x has 1 samples and y 5; expected at least two of each"):
        two_sample_test(gaussian(1, 2), gaussian(5, 2))
    with pytest.raises(ValueError, match="x has 2 columns and y 3"):
        two_sample_test(gaussian(5, 2), gaussian(5, 3))


# Path energy


def test_path_energy_is_the_integral_of_the_mean_square():
    # |v|^2 = t (1^2 + 2^2) is linear in t, where the trapezoidal rule is exact on any grid.
    ts = mx.array([0, 0.1, 0.5, 1])
    velocities = mx.sqrt(ts)[:, None, None] * mx.array([[1.0, 2.0], [-1.0, 2.0], [2.0, 1.0]])
    assert path_energy(ts, velocities) == pytest.approx(5 / 2, rel=1e-6)
    images = velocities.reshape(4, 3, 2, 1)
    assert path_energy(ts, images) == pytest.approx(5 / 2, rel=1e-6)


def test_normalised_path_energy_is_0_for_optimal_transport_only():
    ts, x0 = np.linspace(0, 1, 5), normal_quantiles(50)[:, None]

    def straight(x1):
        energy = path_energy(ts, np.broadcast_to(x1 - x0, (5, 50, 1)))
        return normalised_path_energy(energy, wasserstein(x0, x1))

    assert straight(x0 + 3) == pytest.approx(0, abs=1e-12)
    # Crossing paths to the same points: E (3 - 2 x)^2 = 9 + 4 E x^2 against W_2^2 = 9.
    assert straight(3 - x0) == pytest.approx(4 * (x0**2).mean() / 9, rel=1e-12)
    assert normalised_path_energy(3.0, 2.0) == 0.25


@pytest.mark.parametrize(
    ("ts", "shape", "message"),
    [
        ([0.0], (1, 3, 2), "two or more increasing times"),
        ([0, 0.5, 0.5], (3, 3, 2), "two or more increasing times"),
        ([1, 0], (2, 3, 2), "two or more increasing times"),
        ([0, 1], (3, 2), r"velocities has shape \(3, 2\); expected \(2, n, ...\)"),
        ([0, 1], (2,), r"velocities has shape \(2,\); expected \(2, n, ...\)"),
    ],
)
def test_path_energy_of_shapes_that_do_not_match(ts, shape, message):
    with pytest.raises(ValueError, match=message):
        path_energy(np.array(ts), np.zeros(shape))


def test_path_energy_of_a_failed_solve():
    with pytest.raises(ValueError, match="velocities holds NaN"):
        path_energy(np.array([0, 1]), np.full((2, 1, 1), np.nan))


@pytest.mark.parametrize("w2", [0, -1, float("nan")])
def test_normalised_path_energy_needs_a_distance(w2):
    with pytest.raises(ValueError, match="expected a distance above 0"):
        normalised_path_energy(1.0, w2)


@pytest.mark.parametrize("sizes", [(30, 30), (30, 20)])
def test_wasserstein_scales_with_its_points(sizes):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 2)) for n in sizes)
    for scale, p in ((1e-30, 2), (1e30, 2), (1e-30, 12), (1e30, 12), (1e30, 1)):
        expected = scale * wasserstein(x, y, p=p)
        assert wasserstein(scale * x, scale * y, p=p) == pytest.approx(expected, rel=1e-9, abs=0)


def test_wasserstein_of_points_near_each_other_beside_one_that_is_far():
    """The far point is in both samples, and costs nothing: the others are what is left."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))
    x[0] = y[0] = 1e10
    alone = wasserstein(x[1:], y[1:])
    assert wasserstein(x, y) == pytest.approx(alone * (39 / 40) ** 0.5, rel=1e-12)
