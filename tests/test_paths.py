import functools
import math

import mlx.core as mx
import numpy as np
import pytest

import closed_forms
from flowmlx.couplings import exact_ot, independent
from flowmlx.paths import (
    PATHS,
    Bridge,
    EncodingDecoding,
    GaussianPath,
    Linear,
    LinearVP,
    Mirror,
    Polynomial,
    Target,
    Trigonometric,
    VPDiffusion,
    expand_time,
    time_derivative,
)

SIGMA = 0.3


def endpoints(n=64, shape=(3,)):
    keys = mx.random.split(mx.random.key(7), 2)
    return [mx.random.normal((n, *shape), key=k) for k in keys]


def times(path, n=64):
    low, high = path.interval
    return mx.array(np.linspace(low, high, n, endpoint=False), mx.float32)


CASES = {name: path(sigma=SIGMA) for name, path in PATHS.items()} | {
    "polynomial_1": Polynomial(1),
    "polynomial_5": Polynomial(5),
    "vp_diffusion_slow": VPDiffusion(0.5, 0.5),
    "target_0": Target(),
    "bridge_0": Bridge(0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_coefficients_and_derivatives_are_the_closed_forms(name):
    """On the whole interval, ends included, against complex steps in float64."""
    path, t = CASES[name], closed_forms.times(CASES[name])
    values, derivatives = time_derivative(path.coefficients, mx.array(t))
    for k, exact in zip([*values, *derivatives], closed_forms.coefficients(path, t), strict=True):
        np.testing.assert_allclose(
            np.broadcast_to(np.array(k), t.shape), exact, rtol=5e-6, atol=2e-6
        )


@pytest.mark.parametrize("name", sorted(set(CASES) - {"encoding_decoding"}))
def test_coefficients_keep_their_digits_at_both_ends(name):
    """What is small near an end is not the difference of two numbers near 1."""
    path, t = CASES[name], closed_forms.times(CASES[name])
    t = t[np.abs(t - 0.5) > 0.25]  # the derivative of a bridge's noise crosses 0 between
    values, derivatives = time_derivative(path.coefficients, mx.array(t))
    exact = closed_forms.coefficients(path, t)
    for k, value in zip([*values, *derivatives], exact, strict=True):
        np.testing.assert_allclose(
            np.broadcast_to(np.array(k), t.shape), value, rtol=2e-6, atol=1e-15
        )


@pytest.mark.parametrize("name", CASES)
def test_point_and_velocity_are_the_closed_forms(name, key):
    """Of images, whose times go along the batch alone."""
    path, (x0, x1) = CASES[name], endpoints(shape=(4, 4, 1))
    s = path.sample(x0, x1, times(path), key=key)
    a, b, c, da, db, dc = (
        k.reshape(-1, 1, 1, 1) for k in closed_forms.coefficients(path, times(path))
    )
    np.testing.assert_allclose(s.xt, a * x1 + b * x0 + c * s.eps, atol=2e-6)
    np.testing.assert_allclose(s.ut, da * x1 + db * x0 + dc * s.eps, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", PATHS)
def test_sample_names_what_it_lies_between(name, key):
    """The source is eps where the coefficient of x0 is 0 at all times."""
    path = CASES[name]
    x0, x1 = endpoints()
    s = path.sample(x0, x1, times(path), key=key)
    np.testing.assert_array_equal(s.x1, x1)
    _, beta, *_ = closed_forms.coefficients(path, times(path))
    np.testing.assert_array_equal(s.x0, x0 if beta.any() else s.eps)


def test_sources_of_their_own():
    own = {name for name, path in CASES.items() if path.gaussian_source}
    assert own == {"target", "target_0", "one_sided_trigonometric"}


@pytest.mark.parametrize("name", PATHS)
def test_path_joins_its_endpoints(name, key):
    """Without noise; the source of a one-sided path is eps, that of the mirror x1."""
    path = PATHS[name](sigma=0.0)
    x0, x1 = endpoints()
    start, end = (path.sample(x0, x1, mx.full((64,), t), key=key) for t in (0.0, 1.0))
    source = x1 if name == "mirror" else start.x0
    left = 0.007 if name == "vp_diffusion" else 0  # of the data, at t = 0
    np.testing.assert_allclose(start.xt, source, atol=1e-6 + left * np.abs(x1).max().item())
    np.testing.assert_allclose(end.xt, x1, atol=1e-6)


def test_diffusion_starts_from_noise_but_for_what_is_known():
    alpha, beta, _ = VPDiffusion().coefficients(mx.array(0.0))
    assert alpha.item() == pytest.approx(math.exp(-(19.9 / 2 + 0.1) / 2), rel=1e-6)
    assert alpha.item() ** 2 + beta.item() ** 2 == pytest.approx(1, rel=1e-6)


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
        (Mirror(2.0), 0.2, 0.8),
        (EncodingDecoding(), 0.5, 1.0),
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


@pytest.mark.parametrize("name", CASES)
def test_velocity_at_a_point_of_the_path_is_that_of_its_noise(name, key):
    """Elsewhere it is linear in x, as the noise is."""
    path = CASES[name]
    x0, x1 = endpoints()
    low, high = path.interval
    t = mx.array(np.linspace(max(low, 0.05), min(high, 0.9), 64), mx.float32)
    eps = mx.random.normal(x1.shape, key=key)
    s, still = path.point(x0, x1, t, eps), path.point(x0, x1, t, mx.zeros_like(eps))
    np.testing.assert_allclose(path.velocity(t, s.xt, x0, x1), s.ut, rtol=1e-4, atol=1e-4)
    doubled = path.velocity(t, 2 * s.xt - still.xt, x0, x1)
    np.testing.assert_allclose(doubled, 2 * s.ut - still.ut, rtol=1e-4, atol=2e-4)


def test_a_point_is_the_draw_with_that_noise(key):
    x0, x1 = endpoints()
    s = Bridge(SIGMA).sample(x0, x1, times(Bridge()), key=key)
    for a, b in zip(s, Bridge(SIGMA).point(x0, x1, times(Bridge()), s.eps), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gaussian_path_with_constant_std(key):
    x0, x1 = endpoints()
    path = GaussianPath(mean=lambda t, x0, x1: t * x1 + (1 - t) * x0, std=lambda t, x0, x1: 0.5)
    np.testing.assert_allclose(path.sample(x0, x1, times(Linear()), key=key).ut, x1 - x0, atol=1e-6)


def test_time_goes_along_the_batch_when_batch_equals_dimension():
    t = mx.array([0.0, 0.5, 1.0])
    x0, x1 = mx.zeros((3, 3)), mx.ones((3, 3))
    xt = Linear().sample(x0, x1, t, key=mx.random.key(0)).xt
    np.testing.assert_array_equal(xt, np.repeat([[0.0], [0.5], [1.0]], 3, axis=1))


@pytest.mark.parametrize("path", [Polynomial, LinearVP, VPDiffusion, Bridge, Mirror])
def test_bad_margin_is_refused(path):
    for margin in (0.0, 0.5, math.nan):
        with pytest.raises(ValueError, match=r"margin is .*; expected a number above 0"):
            path(margin=margin)


def test_bad_parameters_are_refused():
    for n in (0, 1.5):
        with pytest.raises(ValueError, match=f"n is {n}; expected an integer >= 1"):
            Polynomial(n)
    with pytest.raises(ValueError, match=r"beta_min is 2\.0 and beta_max 1\.0; expected 0 <"):
        VPDiffusion(2, 1)


@pytest.mark.parametrize("name", PATHS)
def test_bad_sigma_is_refused(name):
    for sigma in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"sigma is .*; expected a finite number >= 0"):
            PATHS[name](sigma=sigma)


def test_shapes_that_do_not_fit_are_refused(key):
    with pytest.raises(ValueError, match=r"x0 has shape \(3, 2\) and x1 \(4, 2\)"):
        Linear().sample(mx.zeros((3, 2)), mx.zeros((4, 2)), mx.zeros(3), key=key)
    with pytest.raises(ValueError, match=r"t has shape \(2,\); expected a scalar or \(3,\)"):
        expand_time(mx.zeros(2), mx.zeros((3, 2)))


M0, S0, M1, S1 = -1.0, 2.0, 3.0, 0.5  # means and standard deviations


@functools.cache
def paired(coupling, n=1500):
    """Points of N(M0, S0^2) and N(M1, S1^2) on a line, paired."""
    x0, x1 = endpoints(n, (1,))
    i, j = coupling(M0 + S0 * x0, M1 + S1 * x1)
    return M0 + S0 * x0[i], M1 + S1 * x1[j]


@pytest.mark.parametrize("coupling", [independent, exact_ot], ids=["independent", "exact_ot"])
@pytest.mark.parametrize("name", CASES)
def test_moments_at_fixed_times_are_the_closed_forms(name, coupling, key):
    """Transport between two Gaussians on a line is x1 = M1 + S1 / S0 (x0 - M0)."""
    path, (x0, x1) = CASES[name], paired(coupling)
    low, high = path.interval
    for t in np.linspace(low + 0.01, high - 0.01, 5):
        a, b, c = (float(k) for k in closed_forms.coefficients(path, t)[:3])
        xt = np.array(path.sample(x0, x1, mx.full((len(x0),), t), key=key).xt, np.float64)
        together = 2 * a * b * S0 * S1 if coupling is exact_ot else 0.0
        variance = (a * S1) ** 2 + (b * S0) ** 2 + together + c**2
        error = math.sqrt(variance / len(x0))
        assert xt.mean() == pytest.approx(a * M1 + b * M0, abs=5 * error)
        assert xt.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / len(x0)))


@pytest.mark.parametrize("path", [Trigonometric(), LinearVP(), VPDiffusion()])
def test_variance_preserving_paths_keep_the_variance(path, key):
    n = 40_000
    x0, x1 = endpoints(n, (1,))
    for t in (0.2, 0.5, 0.8):
        xt = np.array(path.sample(x0, x1, mx.full((n,), t), key=key).xt)
        assert xt.var() == pytest.approx(1, abs=0.03)
