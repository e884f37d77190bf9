"""Sampling against the closed-form flow between two Gaussians."""

import mlx.core as mx
import numpy as np
import pytest

from flowmlx.sampling import sample
from flowmlx.solvers import METHODS

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


@pytest.mark.parametrize("method", METHODS)
def test_samples_follow_the_closed_form(method):
    x0 = mx.array(np.linspace(-4, 3, 50)[:, None], mx.float32)
    ts = np.linspace(0, 1, 9)
    solution = sample(field, x0, ts=ts, method=method, rtol=1e-6, atol=1e-6, step_size=1 / 200)
    exact = np.stack([flow(t, np.array(x0)) for t in ts])
    tolerance = 2e-2 if method == "euler" else 1e-4
    np.testing.assert_allclose(solution.xs, exact, atol=tolerance)


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
