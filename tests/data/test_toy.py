import math

import mlx.core as mx
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import chisquare, kstest
from sklearn import datasets

from flowmlx.data import toy
from flowmlx.data.toy import TOY, eight_gaussians, eight_gaussians_log_prob

KEY = mx.random.key(7)
N = 4000
# With fixed keys a right generator passes for ever; a wrong one gives p-values far below this.
P = 1e-3


def draw(name, n=N, **parameters):
    return np.array(TOY[name](n, key=KEY, **parameters), np.float64)


def assert_uniform(values, low, high):
    assert kstest(np.asarray(values).ravel(), "uniform", (low, high - low)).pvalue > P


def assert_equally_likely(labels, kinds):
    counts = np.bincount(np.asarray(labels).astype(int), minlength=kinds)
    assert len(counts) == kinds
    assert chisquare(counts).pvalue > P


def angles(points):
    return np.arctan2(points[:, 1], points[:, 0]) % (2 * math.pi)


@pytest.mark.parametrize("name", TOY)
def test_a_key_fixes_the_draw_and_another_key_changes_every_point(name):
    first, again = (TOY[name](64, key=mx.random.key(1)) for _ in range(2))
    other = TOY[name](64, key=mx.random.key(2))
    assert first.dtype == mx.float32
    assert first.shape == (64, 2)
    assert mx.array_equal(first, again)
    assert mx.all(mx.any(first != other, axis=1))


@pytest.mark.parametrize("name", TOY)
def test_vmap_over_keys_draws_what_each_key_draws(name):
    keys = mx.random.split(KEY, 3)
    together = mx.vmap(lambda key: TOY[name](16, key=key))(keys)
    apart = mx.stack([TOY[name](16, key=key) for key in keys])
    assert mx.allclose(together, apart, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TOY)
def test_a_compiled_step_draws_anew_for_each_key(name):
    step = mx.compile(lambda key: TOY[name](16, key=key))
    for key in mx.random.split(KEY, 3):
        # Another key gives points a thousand times further away than the tolerance.
        assert mx.allclose(step(key), TOY[name](16, key=key), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("8gaussians", 1),
        ("moons", 2),
        ("2spirals", 1),
        ("scurve", 1.5),
        ("circles", 3),
        ("swissroll", 0.3),
    ],
)
def test_noise_has_the_stated_std_and_is_independent_of_everything(name, scale):
    std = 0.37
    curve = draw(name, std=0.0)
    noise = (draw(name, std=std) - curve) / scale
    for column in noise.T:
        assert kstest(column, "norm", (0, std)).pvalue > P
    pairs = [(noise[:, 0], noise[:, 1]), tuple(np.abs(noise).T)]
    pairs += [(a, b) for a in noise.T for b in curve.T]
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(N)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_normal_is_standard_in_any_dimension(dim):
    x = draw("normal", dim=dim)
    assert x.shape == (N, dim)
    assert kstest(x.ravel(), "norm").pvalue > P
    assert np.cov(x, rowvar=False) == pytest.approx(np.eye(dim).squeeze(), abs=0.08)


def test_8gaussians_has_eight_equal_components_on_a_circle():
    x = draw("8gaussians", std=0.0, radius=3.0)
    k = np.round(angles(x) / (math.pi / 4)) % 8
    assert_equally_likely(k, 8)
    centres = 3 * np.column_stack([np.cos(k * math.pi / 4), np.sin(k * math.pi / 4)])
    np.testing.assert_allclose(x, centres, atol=1e-5)


def test_8gaussians_default_covariance():
    # Between components radius^2 / 2 per coordinate, within them a variance of 0.1.
    x = draw("8gaussians", n=20_000)
    assert np.cov(x, rowvar=False) == pytest.approx((12.5 + 0.1) * np.eye(2), abs=0.35)
    nearest = np.abs(np.linalg.norm(x, axis=1) - 5)
    assert np.sqrt((nearest**2).mean()) == pytest.approx(math.sqrt(0.1), rel=0.03)


def test_moons_are_two_half_circles_at_uniform_angles():
    x = draw("moons", std=0.0, scale=1.0, shift=0.0)
    upper = np.abs(np.linalg.norm(x, axis=1) - 1) < 1e-5
    centred = np.where(upper[:, None], x, x - [1, 0.5])
    np.testing.assert_allclose(np.linalg.norm(centred, axis=1), 1, atol=1e-5)
    angle = angles(centred)
    assert_uniform(angle[upper], 0, math.pi)
    assert_uniform(angle[~upper], math.pi, 2 * math.pi)
    assert_equally_likely(upper, 2)


def test_moons_scale_and_shift_apply_after_the_noise():
    plain = draw("moons", scale=1.0, shift=0.0)
    np.testing.assert_allclose(draw("moons", scale=3.0, shift=-1.0), 3 * plain - 1, atol=1e-5)


@pytest.mark.parametrize("squares", [2, 4, 6])
def test_checkerboard_fills_every_other_square_evenly(squares):
    x = draw("checkerboard", squares=squares, half_width=3.0)
    position = (x + 3) / (6 / squares)
    column, row = np.floor(position).astype(int).T
    assert position.min() >= 0
    assert position.max() < squares
    assert not ((column + row) % 2).any()
    assert_equally_likely((column * squares + row) // 2, squares**2 // 2)
    for within in (position % 1).T:
        assert_uniform(within, 0, 1)
    assert abs(np.corrcoef((position % 1).T)[0, 1]) < 4 / math.sqrt(N)


@pytest.mark.parametrize("squares", [0, 3, -2])
def test_checkerboard_refuses_a_board_that_cannot_alternate(squares):
    with pytest.raises(ValueError, match=f"squares is {squares}; expected an "):
        toy.checkerboard(8, key=KEY, squares=squares)


def test_2spirals_lie_on_both_arms():
    x = draw("2spirals", std=0.0, radius=2.0, turns=1.5)
    r = np.linalg.norm(x, axis=1) / 2
    arm = 2 * r[:, None] * np.column_stack([-np.cos(3 * math.pi * r), np.sin(3 * math.pi * r)])
    positive = np.linalg.norm(x - arm, axis=1) < 1e-4
    np.testing.assert_allclose(x, np.where(positive[:, None], arm, -arm), atol=1e-4)
    assert_uniform(r**2, 0, 1)
    assert_equally_likely(positive[r > 0.01], 2)


def test_scurve_follows_its_formula():
    x, y = draw("scurve", std=0.0, scale=2.0).T / 2
    positive = y < 0
    side = np.where(positive, 1, -1)
    angle = np.arctan2(side * x, 1 + side * y) % (2 * math.pi)
    np.testing.assert_allclose(np.hypot(x, 1 + side * y), 1, atol=1e-5)
    assert_uniform(angle, 0, 1.5 * math.pi)
    assert_equally_likely(positive, 2)


def test_pinwheel_arms_bend_with_the_radius():
    # Without tangential noise a point is scale f1 (cos a, -sin a), a = 2 pi k/arms + rate exp(f1).
    x = draw("pinwheel", arms=3, radial_std=0.1, tangential_std=0.0, rate=0.5, scale=2.0)
    f1 = np.linalg.norm(x, axis=1) / 2
    assert kstest(f1, "norm", (1, 0.1)).pvalue > P
    k = (angles(x * [1, -1]) - 0.5 * np.exp(f1)) / (2 * math.pi / 3)
    np.testing.assert_allclose(k, np.round(k), atol=1e-4)
    assert_equally_likely(np.round(k) % 3, 3)


def test_pinwheel_tangential_noise_is_at_right_angles_to_the_arm():
    spine = draw("pinwheel", tangential_std=0.0, scale=1.0)
    noise = draw("pinwheel", tangential_std=0.2, scale=1.0) - spine
    out = spine / np.linalg.norm(spine, axis=1, keepdims=True)
    assert np.abs((noise * out).sum(1)).max() < 1e-5
    tangential = noise[:, 1] * out[:, 0] - noise[:, 0] * out[:, 1]
    assert kstest(tangential, "norm", (0, 0.2)).pvalue > P
    radius = np.linalg.norm(spine, axis=1)
    assert abs(np.corrcoef(tangential, radius)[0, 1]) < 4 / math.sqrt(N)


def test_circles_have_two_radii_and_uniform_angles():
    x = draw("circles", std=0.0, factor=0.25, scale=2.0)
    radius = np.linalg.norm(x, axis=1)
    outer = radius > 1
    np.testing.assert_allclose(radius, np.where(outer, 2, 0.5), atol=1e-5)
    assert_equally_likely(outer, 2)
    for circle in (outer, ~outer):
        assert_uniform(angles(x[circle]), 0, 2 * math.pi)


def test_swissroll_radius_is_its_angle():
    x = draw("swissroll", std=0.0, scale=1.0)
    a = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(x, a[:, None] * np.column_stack([np.cos(a), np.sin(a)]), atol=1e-4)
    assert_uniform(a, 1.5 * math.pi, 4.5 * math.pi)


@pytest.mark.parametrize(
    ("name", "parameters", "reference"),
    [
        ("moons", {"scale": 1, "shift": 0}, datasets.make_moons(600, noise=0.1, random_state=0)),
        ("scurve", {"scale": 1}, datasets.make_s_curve(600, noise=0.1, random_state=0)),
        ("swissroll", {"scale": 1}, datasets.make_swiss_roll(600, noise=0.1, random_state=0)),
        (
            "circles",
            {"scale": 1, "factor": 0.5},
            datasets.make_circles(600, noise=0.1, factor=0.5, random_state=0),
        ),
    ],
)
def test_same_distribution_as_scikit_learn(name, parameters, reference):
    pooled = np.concatenate([draw(name, n=600, std=0.1, **parameters), reference[0][:, [0, -1]]])
    distances = cdist(pooled, pooled)
    rng = np.random.default_rng(0)
    group = np.repeat([1.0, -1.0], 600)
    groups = np.stack([group, *(rng.permutation(group) for _ in range(300))], 1)
    # The part of the energy distance that a permutation changes.
    between, *permuted = -(groups * (distances @ groups)).sum(0)
    assert between < np.quantile(permuted, 0.99)


def test_density_of_eight_gaussians_is_that_of_its_draws():
    """It integrates to 1, and its mean logarithm over draws is minus the entropy."""
    grid = np.linspace(-8, 8, 401)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    density = np.exp(np.array(eight_gaussians_log_prob(mx.array(points, mx.float32))))
    assert density.sum() * (grid[1] - grid[0]) ** 2 == pytest.approx(1, abs=1e-4)
    draws = eight_gaussians(20_000, key=mx.random.key(0))
    entropy = np.log(8) + 1 + np.log(2 * np.pi * 0.1)
    assert -np.array(eight_gaussians_log_prob(draws)).mean() == pytest.approx(entropy, abs=0.03)
