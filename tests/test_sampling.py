"""Sampling against the closed-form flow between two Gaussians."""

import re

import mlx.core as mx
import numpy as np
import pytest

from flowmlx.conversions import amplitudes, convert
from flowmlx.paths import PATHS, Linear, Polynomial
from flowmlx.sampling import PATH_METHODS, SAMPLERS, reflow_pairs, row_blocks, sample
from flowmlx.solvers import GRIDS, METHODS

M0, S0, M1, S1 = -1.0, 1.0, 2.0, 0.25  # means and variances


def moments(t):
    return (1 - t) * M0 + t * M1, (1 - t) ** 2 * S0 + t**2 * S1


def field(t, x):
    """Marginal velocity of the linear path, independent coupling, N(M0, S0) to N(M1, S1)."""
    mean, variance = moments(t)
    return M1 - M0 + (t * S1 - (1 - t) * S0) / variance * (x - mean)


def flow(t, x0):
    """Where `field` carries x0: the score z = (x - m_t) / sqrt(S_t) is constant along it."""
    mean, variance = moments(t)
    return mean + (x0 - M0) / np.sqrt(S0) * np.sqrt(variance)


@pytest.mark.parametrize("method", SAMPLERS)
def test_samples_follow_the_closed_form(method):
    x0 = mx.array(np.linspace(-4, 3, 50)[:, None], mx.float32)
    ts = np.linspace(0, 1, 9)
    solution = sample(field, x0, ts=ts, method=method, path=Linear(), step_size=1 / 200)
    exact = np.stack([flow(t, np.array(x0)) for t in ts])
    # The last step of those that know the path is of first order, however long it is.
    tolerance = {"euler": 2e-2, "dpmpp_2m": 1e-3, "unipc_2": 3e-4}.get(method, 1e-4)
    np.testing.assert_allclose(solution.xs, exact, atol=tolerance)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", SAMPLERS)
def test_samples_on_every_grid(method, grid):
    """Bounds are wider than on equal steps: the longest step of a grid is up to three times one."""
    x0 = mx.array(np.linspace(-4, 3, 50)[:, None], mx.float32)
    ts = np.linspace(0, 1, 9)
    solution = sample(field, x0, ts=ts, method=method, path=Linear(), grid=GRIDS[grid](200))
    exact = np.stack([flow(t, np.array(x0)) for t in ts])
    tolerance = {"euler": 3e-2, "dpmpp_2m": 5e-3, "unipc_2": 2e-3}.get(method, 2e-4)
    np.testing.assert_allclose(solution.xs, exact, atol=tolerance)
    assert solution.stats.accepted == 200


def test_tolerance_and_step_size_decide_on_the_error():
    x0 = mx.array(np.linspace(-4, 3, 50)[:, None], mx.float32)

    def error(**options):
        return np.abs(np.array(sample(field, x0, **options).xs[-1]) - flow(1, np.array(x0))).max()

    assert error(rtol=1e-6, atol=1e-6) < 1e-5 < error(rtol=1e-2, atol=1e-2)
    assert error(method="heun", step_size=0.01) < 2e-4 < error(method="heun", step_size=0.2)


def test_a_method_may_be_a_stepper():
    x0, options = mx.array([[0.5, 1.0], [-1.0, 0.2]]), {"step_size": 0.1}
    ends = [
        sample(lambda t, x: t - x, x0, method=m, **options).xs for m in ("heun", METHODS["heun"])
    ]
    assert mx.array_equal(*ends)


@pytest.mark.parametrize("path", [p() for p in PATHS.values()])
@pytest.mark.parametrize("method", PATH_METHODS)
def test_methods_that_know_the_path_reach_a_point_in_a_few_steps(method, path):
    """Or say that the path has noise of its own. Data at one point: x1 is known."""
    point = mx.array([3.0, -2.0])
    x0 = mx.array([[0.5, 1.0], [-1.0, 0.2]])

    def field(t, x):
        x1 = mx.broadcast_to(point, x.shape)
        return convert(x1, given="x1", wanted="velocity", path=path, t=t, x=x)

    low, _ = path.interval
    try:
        amplitudes(path, mx.array(0.5))
    except ValueError as reason:
        with pytest.raises(ValueError, match=re.escape(str(reason))):
            sample(field, x0, method=method, path=path)
        return
    end = sample(field, x0, method=method, path=path, ts=(low, 0.4, 1.0)).xs[-1]
    if amplitudes(path, mx.array(1.0))[1].item() == 0:
        np.testing.assert_allclose(end, np.tile(point, (2, 1)), atol=2e-3)
    assert mx.isfinite(end).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "dopri"}, r"unknown method 'dopri' \(did you mean 'dopri5'\?\)"),
        ({"method": "unipc_2"}, r'write sample\(field, x0, method="unipc_2", path=Linear\(\)\)'),
        ({"method": "dpmpp_2m", "path": Linear(sigma=0.1)}, "noise of its own"),
        ({"method": "unipc_2", "path": Polynomial(3)}, "stands still; start a little later"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        sample(field, mx.zeros((2, 1)), **options)


def test_adaptive_samples_have_the_moments_of_the_target(key):
    x0 = M0 + S0**0.5 * mx.random.normal((20_000, 1), key=key)
    x1 = np.array(sample(field, x0).xs[-1])
    assert x1.mean() == pytest.approx(M1, abs=4 * np.sqrt(S1 / 20_000))
    assert x1.std() == pytest.approx(np.sqrt(S1), rel=0.02)


def test_there_and_back_returns_the_source(key):
    x0 = mx.random.normal((100, 1), key=key)
    there = sample(field, x0, rtol=1e-6, atol=1e-6).xs[-1]
    back = sample(field, there, ts=(1.0, 0.0), rtol=1e-6, atol=1e-6).xs[-1]
    np.testing.assert_allclose(back, x0, atol=1e-5)


def test_blocks_of_rows_are_the_same_for_every_number_of_rows():
    many = list(row_blocks(20_000))
    assert sum(size for _, size in many) >= 20_000
    for start, size in many:
        assert size >= 1024
        assert list(row_blocks(start + 1)) == [block for block in many if block[0] <= start]
    assert list(row_blocks(0)) == []
    assert [size for _, size in many] == [1024, 1024, 2048, 4096, 4096, 4096, 4096]


def test_pairs_are_source_points_and_where_they_are_carried():
    x0 = mx.array(np.linspace(-4, 3, 7)[:, None], mx.float32)
    for batch_size in (3, 100):
        start, end = reflow_pairs(field, x0, batch_size=batch_size)
        np.testing.assert_array_equal(start, x0)
        np.testing.assert_allclose(end, flow(1.0, np.array(x0)), atol=1e-3)


def test_pairs_under_conditions_and_a_solver_of_ones_own():
    x0, cond = mx.arange(5.0)[:, None], mx.array([[1.0], [0.0], [2.0], [-1.0], [5.0]])
    _, end = reflow_pairs(
        lambda t, x, cond: cond + 0 * x,
        x0,
        cond,
        batch_size=2,
        solve=lambda v, x: sample(v, x, ts=(0.0, 0.5), method="euler"),
    )
    np.testing.assert_allclose(end, x0 + cond / 2)
    with pytest.raises(ValueError, match="batch_size is 0"):
        reflow_pairs(field, x0, batch_size=0)
