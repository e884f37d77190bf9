import math

import mlx.core as mx
import numpy as np
import pytest

from flowmlx.paths import PATHS, Bridge, GaussianPath, Linear, Target, Trigonometric, expand_time

SIGMA = 0.3


def endpoints(n=64, shape=(3,)):
    keys = mx.random.split(mx.random.key(7), 2)
    return [mx.random.normal((n, *shape), key=k) for k in keys]


def times(path, n=64):
    low, high = path.interval
    return mx.array(np.linspace(low, high, n, endpoint=False), mx.float32)


def in_float64(name, t, x0, x1, eps):
    """x_t and u_t of the table in Tong et al. and Lipman et al., in NumPy's float64."""
    t, x0, x1, eps = (np.asarray(a, np.float64) for a in (t, x0, x1, eps))
    t = t.reshape(-1, *[1] * (x1.ndim - 1))
    s, h = SIGMA, math.pi / 2
    if name == "linear":
        return t * x1 + (1 - t) * x0 + s * eps, x1 - x0
    if name == "trigonometric":
        sin, cos = np.sin(h * t), np.cos(h * t)
        return sin * x1 + cos * x0 + s * eps, h * (cos * x1 - sin * x0)
    if name == "target":
        return t * x1 + (1 - (1 - s) * t) * eps, x1 - (1 - s) * eps
    if name == "bridge":
        root = np.sqrt(t * (1 - t))
        return t * x1 + (1 - t) * x0 + s * root * eps, x1 - x0 + s * (1 - 2 * t) / (2 * root) * eps
    raise AssertionError(f"no closed form for {name}: write it here")


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("shape", [(3,), (4, 4, 1)])
def test_point_and_velocity_are_the_closed_forms(name, shape, key):
    path = PATHS[name](sigma=SIGMA)
    x0, x1 = endpoints(shape=shape)
    s = path.sample(x0, x1, times(path), key=key)
    xt, ut = in_float64(name, s.t, x0, x1, s.eps)
    np.testing.assert_allclose(s.xt, xt, atol=2e-6)
    np.testing.assert_allclose(s.ut, ut, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", PATHS)
def test_velocity_is_the_slope_of_the_point(name, key):
    """The same noise at t - h and t + h: a central difference, away from singular ends."""
    path, h = PATHS[name](sigma=SIGMA), 1e-2
    x0, x1 = endpoints()
    t = 0.1 + 0.8 * times(path)
    before, now, after = (path.sample(x0, x1, t + d, key=key) for d in (-h, 0, h))
    np.testing.assert_allclose((after.xt - before.xt) / (2 * h), now.ut, atol=5e-3)


@pytest.mark.parametrize("name", sorted(set(PATHS) - {"target"}))
def test_path_joins_its_endpoints(name, key):
    path = PATHS[name](sigma=0.0)
    x0, x1 = endpoints()
    for t, end in ((0.0, x0), (1.0, x1)):
        xt = path.sample(x0, x1, mx.full((64,), t), key=key).xt
        np.testing.assert_allclose(xt, end, atol=1e-6)


def test_target_path_starts_from_its_own_noise(key):
    x0, x1 = endpoints()
    s = Target(0.1).sample(x0, x1, mx.zeros(64), key=key)
    np.testing.assert_array_equal(s.xt, s.eps)
    assert Target().gaussian_source
    assert not Linear().gaussian_source


@pytest.mark.parametrize("gap", [2.0**-20, 2.0**-23])
def test_target_velocity_does_not_cancel_near_the_data(gap, key):
    """Lipman's form with a denominator gives 2.25 and 4.0 here in float32 instead of 2.4."""
    sigma, n = 0.0, 8
    x1 = mx.full((n, 1), 3.0)
    s = Target(sigma).sample(mx.zeros((n, 1)), x1, mx.full((n,), 1 - gap), key=key)
    np.testing.assert_allclose(s.ut, 3.0 - np.array(s.eps), rtol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_velocity_is_finite_on_the_whole_interval(name, key):
    path = PATHS[name](sigma=SIGMA)
    x0, x1 = endpoints(4096)
    t = mx.random.uniform(*path.interval, (4096,), key=key)
    t[0], t[1] = path.interval
    assert np.isfinite(path.sample(x0, x1, t, key=key).ut).all()


@pytest.mark.parametrize("name", PATHS)
def test_draws_differ_by_key_and_repeat_by_key(name):
    path = PATHS[name](sigma=SIGMA)
    x0, x1 = endpoints()
    a, b, c = (
        np.array(path.sample(x0, x1, times(path), key=mx.random.key(k)).xt) for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(a, b)
    assert (np.abs(a - c)[5:-5] > 1e-6).mean() > 0.95


def test_noise_has_the_stated_standard_deviation(key):
    n = 40_000
    zeros = mx.zeros((n, 1))
    for path, t, expected in (
        (Linear(0.3), 0.5, 0.3),
        (Bridge(2.0), 0.2, 0.8),
        (Target(0.1), 0.5, 0.55),
    ):
        xt = np.array(path.sample(zeros, zeros, mx.full((n,), t), key=key).xt)
        assert xt.std() == pytest.approx(expected, rel=0.02)


def test_gaussian_path_equals_the_affine_path_it_describes(key):
    x0, x1 = endpoints()
    t = 0.05 + 0.9 * times(Linear())
    written = GaussianPath(
        mean=lambda t, x0, x1: t * x1 + (1 - t) * x0,
        std=lambda t, x0, x1: SIGMA * mx.sqrt(t * (1 - t)),
    )
    a, b = (p.sample(x0, x1, t, key=key) for p in (written, Bridge(SIGMA)))
    np.testing.assert_allclose(a.xt, b.xt, atol=1e-6)
    np.testing.assert_allclose(a.ut, b.ut, rtol=1e-5, atol=1e-5)


def test_gaussian_path_velocity_is_that_of_the_theorem(key):
    """mean = t^2 x1, std = exp(-t): u = -(x - t^2 x1) + 2 t x1."""
    path = GaussianPath(
        mean=lambda t, x0, x1: t**2 * x1,
        std=lambda t, x0, x1: mx.exp(-t),
        gaussian_source=True,
    )
    x0, x1 = endpoints()
    t, (x, _) = times(Linear()), endpoints(shape=(3,))
    u = path.velocity(t, x, x0, x1)
    tt = np.array(t)[:, None]
    np.testing.assert_allclose(u, -(x - tt**2 * x1) + 2 * tt * x1, atol=2e-6)
    s = path.sample(x0, x1, t, key=key)
    np.testing.assert_allclose(path.velocity(t, s.xt, x0, x1), s.ut, atol=1e-5)


def test_gaussian_path_with_constant_std(key):
    x0, x1 = endpoints()
    path = GaussianPath(mean=lambda t, x0, x1: t * x1 + (1 - t) * x0, std=lambda t, x0, x1: 0.5)
    np.testing.assert_allclose(path.sample(x0, x1, times(Linear()), key=key).ut, x1 - x0, atol=1e-6)


def test_time_goes_along_the_batch_when_batch_equals_dimension():
    t = mx.array([0.0, 0.5, 1.0])
    x0, x1 = mx.zeros((3, 3)), mx.ones((3, 3))
    xt = Linear().sample(x0, x1, t, key=mx.random.key(0)).xt
    np.testing.assert_array_equal(xt, np.repeat([[0.0], [0.5], [1.0]], 3, axis=1))


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", PATHS)
def test_bad_sigma_is_refused(name, sigma):
    with pytest.raises(ValueError, match=r"sigma is .*; expected a finite number >= 0"):
        PATHS[name](sigma=sigma)


def test_shapes_that_do_not_fit_are_refused(key):
    with pytest.raises(ValueError, match=r"x0 has shape \(3, 2\) and x1 \(4, 2\)"):
        Linear().sample(mx.zeros((3, 2)), mx.zeros((4, 2)), mx.zeros(3), key=key)
    with pytest.raises(ValueError, match=r"t has shape \(2,\); expected a scalar or \(3,\)"):
        expand_time(mx.zeros(2), mx.zeros((3, 2)))


def test_trigonometric_path_keeps_the_variance(key):
    n = 40_000
    x0, x1 = endpoints(n, (1,))
    for t in (0.2, 0.5, 0.8):
        xt = np.array(Trigonometric().sample(x0, x1, mx.full((n,), t), key=key).xt)
        assert xt.var() == pytest.approx(1, abs=0.03)
