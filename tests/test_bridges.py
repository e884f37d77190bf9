"""Velocity and score of a Brownian path between Gaussians, against closed forms."""

import math
from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

from flowmlx.bridges import (
    TwoHeads,
    TwoNetworks,
    VelocityOf,
    sample_bridge,
    score_flow_loss,
)
from flowmlx.losses import flow_matching_loss
from flowmlx.metrics import energy_distance
from flowmlx.nets import MLP
from flowmlx.paths import PATHS, Bridge, BrownianPath
from flowmlx.paths.affine import time_derivative
from flowmlx.sampling import sample
from flowmlx.solvers import SDE_METHODS
from flowmlx.training import TrainState, fit

M0, S0, M1, S1, SIGMA = -1.0, 1.0, 2.0, 0.25, 0.8  # means, variances, and the bridge's noise
BROWNIAN = [p for p in PATHS.values() if issubclass(p, BrownianPath)]


def moments(t):
    """Of x_t = t x1 + (1 - t) x0 + gamma eps."""
    variance = (1 - t) ** 2 * S0 + t**2 * S1 + SIGMA**2 * t * (1 - t)
    return (1 - t) * M0 + t * M1, variance


def exact_on(path):
    """Velocity E[u_t | x_t = x], and sigma^2 / 2 times the score, of independent Gaussians."""

    def model(t, x):
        (alpha, beta), (da, db) = time_derivative(lambda t: path.coefficients(t)[:2], t)
        variance = alpha**2 * S1 + beta**2 * S0 + SIGMA**2 * t * (1 - t)
        covariance = alpha * da * S1 + beta * db * S0 + SIGMA**2 * (1 - 2 * t) / 2
        away = (x - alpha * M1 - beta * M0) / variance
        return da * M1 + db * M0 + covariance * away, -(SIGMA**2) / 2 * away

    return model


exact = exact_on(Bridge(SIGMA))


def ends(n, key):
    k0, k1 = mx.random.split(key)
    x0 = M0 + math.sqrt(S0) * mx.random.normal((n, 1), key=k0)
    return x0, M1 + math.sqrt(S1) * mx.random.normal((n, 1), key=k1)


def assert_moments(x, t):
    mean, variance = moments(t)
    x = np.array(x)
    assert x.mean() == pytest.approx(mean, abs=4 * math.sqrt(variance / len(x)))
    assert x.var() == pytest.approx(variance, rel=4 * math.sqrt(2 / len(x)) + 0.01)


@pytest.mark.parametrize("path", BROWNIAN)
def test_exact_model_has_the_least_loss(path, key):
    """Its gradient vanishes in any direction, which it does not anywhere else."""
    n, path = 200_000, path(SIGMA)
    x0, x1 = ends(n, mx.random.key(1))
    loss = flow_matching_loss(path, regress=score_flow_loss(path))

    def at(a, b, c, d):
        def model(t, x):
            t = t[:, None]
            v, s = exact_on(path)(t, x)
            return v + a + b * (x - t), s + c + d * (x - t)

        return loss(model, x0, x1, key=key)

    zero = mx.array(0.0)
    slopes = [g.item() for g in mx.grad(at, argnums=(0, 1, 2, 3))(zero, zero, zero, zero)]
    elsewhere = mx.grad(at, argnums=(0, 2))(mx.array(0.3), zero, mx.array(0.3), zero)
    # Per sample they have standard deviations of 2 to 8.
    assert np.abs(slopes).max() < 0.06
    assert min(g.item() for g in elsewhere) > 0.3


@pytest.mark.parametrize("method", SDE_METHODS)
def test_noise_keeps_the_marginals_both_ways(method, key):
    x0, x1 = ends(20_000, key)
    there = sample_bridge(
        exact, x0, sigma=SIGMA, key=key, ts=(0.0, 0.5, 1.0), method=method, step_size=1 / 64
    )
    assert_moments(there.xs[1], 0.5)
    assert_moments(there.xs[2], 1.0)
    back = sample_bridge(
        exact, x1, sigma=SIGMA, key=key, ts=(1.0, 0.5, 0.0), method=method, step_size=1 / 64
    )
    assert_moments(back.xs[1], 0.5)
    assert_moments(back.xs[2], 0.0)


def test_flow_has_the_marginals_of_the_process(key):
    x0, _ = ends(20_000, key)
    solution = sample(VelocityOf(exact), x0, ts=(0.0, 0.5, 1.0), rtol=1e-5, atol=1e-5)
    assert_moments(solution.xs[1], 0.5)
    assert_moments(solution.xs[2], 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("without_compile")
def test_trained_model_samples_alike_with_and_without_noise(key):
    """Energy distances at two times: what a wrong score changes is larger than the bound."""
    path, n, ts = Bridge(SIGMA), 2000, (0.0, 0.5, 1.0)
    net = partial(MLP, 1, width=32, depth=2, activation="relu")
    model = TwoNetworks(*(net(key=k) for k in mx.random.split(key, 2)))
    state = TrainState(model, optim.Adam(5e-3))
    loss = flow_matching_loss(path, regress=score_flow_loss(path))

    def batches(step):
        return dict(zip(("x0", "x1"), ends(256, mx.random.key(step + 100)), strict=True))

    fit(state, batches, loss=loss, steps=400, key=key)
    model, (start, _) = state.averaged(), ends(n, mx.random.key(1))

    def at(t, seed):
        x0, x1 = ends(n, mx.random.key(seed))
        return path.sample(x0, x1, mx.full((n,), t), key=mx.random.key(seed + 1)).xt

    def with_noise(share):
        def scaled(t, x):
            v, s = model(t, x)
            return v, share * s

        return sample_bridge(scaled, start, sigma=SIGMA, key=key, ts=ts, step_size=1 / 32).xs[1:]

    def distances(xs, ys):
        return [energy_distance(x, y) for x, y in zip(xs, ys, strict=True)]

    ode = sample(VelocityOf(model), start, ts=ts).xs[1:]
    true = [at(t, 10 * k) for k, t in enumerate(ts[1:], start=5)]
    # Two samples of the data are 0.0002 to 0.001 apart.
    assert max(distances(ode, true)) < 0.003
    assert max(distances(with_noise(1), true)) < 0.003
    assert max(distances(with_noise(1), ode)) < 0.002
    for share in (0.5, 2):
        assert max(distances(with_noise(share), ode)) > 0.003


def test_heads_and_networks_are_models(key):
    nets = [MLP(2, width=8, key=k) for k in mx.random.split(key, 2)]
    t, x = mx.array([0.1, 0.9]), mx.array([[0.3, 1.0], [2.0, -1.0]])
    v, s = TwoNetworks(*nets)(t, x)
    assert mx.array_equal(v, nets[0](t, x))
    assert mx.array_equal(s, nets[1](t, x))
    net = MLP(2, out_dim=4, width=8, key=key)
    v, s = TwoHeads(net)(t, x)
    assert mx.array_equal(mx.concatenate([v, s], axis=1), net(t, x))
    with pytest.raises(ValueError, match=r"expected twice as many .* MLP\(2, out_dim=4, ...\)"):
        TwoHeads(nets[0])(t, x)


@pytest.mark.parametrize(
    "call",
    [
        lambda key: score_flow_loss(Bridge(sigma=0.0)),
        lambda key: sample_bridge(exact, mx.zeros((2, 1)), sigma=0.0, key=key),
    ],
)
def test_a_score_needs_noise(call, key):
    with pytest.raises(ValueError, match=r"sigma is 0.0; .* a score needs .* Bridge\(sigma=1.0\)"):
        call(key)
