"""Brownian motion and sdeint: distributions, orders of convergence, refusals."""

import math
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flowmlx.sampling import sample, sample_sde
from flowmlx.solvers import SolverError, Status
from flowmlx.solvers.brownian import DEPTH, BrownianMotion, divide, join
from flowmlx.solvers.sde import SDE_METHODS, sdeint

PATHS = 4000
DIAGONAL = [name for name, method in SDE_METHODS.items() if not method.additive]


def motion(span=1.0, shape=(PATHS,), seed=0, **options):
    return BrownianMotion(shape, span, key=mx.random.key(seed), dtype=mx.float64, **options)


def assert_standard_normal(*rows):
    """Rows of n numbers: each standard normal, all pairwise uncorrelated."""
    for row in rows:
        assert stats.kstest(np.array(row), "norm").pvalue > 1e-4
    correlation = np.corrcoef(np.stack([np.array(row) for row in rows])) - np.eye(len(rows))
    assert np.abs(correlation).max() < 5 / math.sqrt(len(rows[0]))


# Brownian motion


@pytest.mark.parametrize("edges", [[0, 0.25, 0.5, 1], [0, 0.3, 0.7654, 0.8, 1], [0.1, 0.102, 0.9]])
def test_increments_are_independent_and_normal(edges):
    w = motion(span=2.0)
    rows = []
    for s, t in pairwise(edges):
        dt, increment, area = w(2 * s, 2 * t)
        assert dt == pytest.approx(2 * (t - s))
        rows += [increment / math.sqrt(dt), area / math.sqrt(dt / 12)]
    assert_standard_normal(*rows)


@pytest.mark.parametrize("theta", [0.5, 0.1, 0.93])
def test_a_divided_increment_is_normal_and_adds_up(theta, key):
    z = mx.random.normal((4, PATHS), dtype=mx.float64, key=key)
    whole = motion(span=3.0)(0, 3.0)
    first, second = divide(whole, theta, z[:2])
    assert_standard_normal(
        first.w / math.sqrt(first.dt),
        first.h / math.sqrt(first.dt / 12),
        second.w / math.sqrt(second.dt),
        second.h / math.sqrt(second.dt / 12),
    )
    for joined, expected in zip(join(first, second), whole, strict=True):
        np.testing.assert_allclose(np.array(joined), np.array(expected), atol=1e-13)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(0.001, 0.999), max_size=5),
    st.integers(0, 5),
    st.sampled_from([mx.float32, mx.float64]),
)
def test_adjacent_increments_add_up_to_that_of_their_union(inner, seed, dtype):
    """For any cuts, asked in any order, by a path that already answered something else."""
    cells = 2**DEPTH
    edges = sorted({0.0, 1.0, *(x for x in inner)})
    edges = [t for s, t in zip([-1.0, *edges], edges, strict=False) if t - s > 1 / cells]
    if 1 - edges[-1] > 0:
        edges[-1] = 1.0
    path = BrownianMotion((3,), 1.0, key=mx.random.key(seed), dtype=dtype)
    pieces = {}
    for s, t in sorted(pairwise(edges), key=lambda edge: math.sin(100 * edge[0])):
        pieces[s] = path(s, t)
    parts = [pieces[s] for s in edges[:-1]]
    total = parts[0]
    for part in parts[1:]:
        total = join(total, part)
    whole = BrownianMotion((3,), 1.0, key=mx.random.key(seed), dtype=dtype)(0.0, 1.0)
    atol = 1e-12 if dtype == mx.float64 else 2e-6
    np.testing.assert_allclose(np.array(total.w), np.array(whole.w), atol=atol)
    np.testing.assert_allclose(np.array(total.h), np.array(whole.h), atol=atol)


def test_area_is_the_mean_of_the_path():
    """h + w / 2 over [0, 1] against the trapezoidal rule on 256 increments of the same path."""
    path = motion(seed=3)
    whole = path(0, 1)
    increments = np.stack([np.array(path(k / 256, (k + 1) / 256).w) for k in range(256)])
    values = np.concatenate([np.zeros((1, PATHS)), np.cumsum(increments, axis=0)])
    error = np.trapezoid(values, dx=1 / 256, axis=0) - np.array(whole.h + whole.w / 2)
    assert error.std() == pytest.approx(1 / 256 / math.sqrt(12), rel=0.1)
    np.testing.assert_allclose(values[-1], np.array(whole.w), atol=1e-12)


def test_keys_and_dtypes_decide_the_path():
    def w(seed, **options):
        return np.array(motion(seed=seed, **options)(0.125, 0.75).w)

    np.testing.assert_array_equal(w(1), w(1))
    assert abs(np.corrcoef(w(1), w(2))[0, 1]) < 5 / math.sqrt(PATHS)
    # A deeper tree keeps the path.
    np.testing.assert_array_equal(w(1), w(1, shortest=1e-6))


def test_steps_by_powers_of_two_cost_one_draw_each(monkeypatch):
    """Also where rounding puts their ends beside the edges of the cells."""
    path, draws = motion(span=0.3), []
    draw = path._normal
    monkeypatch.setattr(path, "_normal", lambda key: draws.append(key) or draw(key))
    for s, t in pairwise([0.1 + k * (0.4 - 0.1) / 64 for k in range(65)]):
        path(s - 0.1, t - 0.1)
    assert len(draws) == 63


def test_a_deeper_tree_answers_for_shorter_intervals():
    with pytest.raises(ValueError, match="pass shortest="):
        motion()(0.3, 0.30001)
    increment = motion(shortest=1e-5)(0.3, 0.30001)
    assert_standard_normal(increment.w / math.sqrt(1e-5), increment.h / math.sqrt(1e-5 / 12))


# Orders of convergence

RATE, VOLATILITY = 0.5, 0.8
STEPS = [8, 16, 32, 64]


def geometric(method, n, paths=PATHS):
    """Errors at time 1 of dx = a x dt + b x dW, x(0) = 1, read in the calculus of the method."""
    calculus = SDE_METHODS[method].calculus
    x0 = mx.ones((paths,), dtype=mx.float64)
    xs = sdeint(
        lambda t, x: RATE * x,
        lambda t, x: VOLATILITY * x,
        x0,
        [0.0, 1.0],
        key=mx.random.key(5),
        method=method,
        step_size=1 / n,
    ).xs
    w = np.array(motion(shape=x0.shape, seed=5)(0, 1).w)
    drift = RATE - (VOLATILITY**2 / 2 if calculus == "ito" else 0)
    return np.array(xs[-1]) - np.exp(drift + VOLATILITY * w)


def bump(x):
    return 4 / (1 + 4 * x * x)


def additive(method, n, drift, down=False, start=1.0):
    """State at time 1 of dx = drift(x) dt + (1 + t) dW, or of the same with time run down."""

    def signed(t, x):
        return -drift(x) if down else drift(x)

    return np.array(
        sdeint(
            signed,
            lambda t, x: 2 - t if down else 1 + t,
            mx.full((PATHS,), start, dtype=mx.float64),
            [1.0, 0.0] if down else [0.0, 1.0],
            key=mx.random.key(6),
            method=method,
            step_size=1 / n,
        ).xs[-1]
    )


@pytest.fixture(scope="module")
def curved():
    """The state at time 1 in 1,024 steps, for the drift `bump`."""
    with mx.stream(mx.cpu):
        return additive("sra1", 1024, bump, start=0.0)


@pytest.fixture(scope="module")
def ornstein_uhlenbeck():
    """x(1) = exp(-2) + int exp(2 (t - 1)) (1 + t) dW, the integrand linear in each of 512 cells."""
    with mx.stream(mx.cpu):
        path, x = motion(seed=6), np.full(PATHS, math.exp(-2))
        edges = np.linspace(0, 1, 513)
        integrand = np.exp(2 * (edges - 1)) * (1 + edges)
        for (s, t), (a, b) in zip(pairwise(edges), pairwise(integrand), strict=True):
            _, w, h = path(s, t)
            # int (r - s) dW over the cell is (t - s) (w - w / 2 - h).
            x = x + a * np.array(w) + (b - a) * np.array(w / 2 - h)
    return x


def order(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def additive_order(method):
    """Without a derivative of g, Euler-Maruyama is Milstein's method."""
    return max(1.0, SDE_METHODS[method].order)


@pytest.mark.parametrize("method", DIAGONAL)
def test_strong_order_with_diagonal_noise(method):
    errors = [np.abs(geometric(method, n)).mean() for n in STEPS]
    assert order(STEPS, errors) == pytest.approx(SDE_METHODS[method].order, abs=0.15)


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("method", SDE_METHODS)
def test_strong_order_with_additive_noise(method, down, ornstein_uhlenbeck):
    """At least: methods of order 3/2 have order 2 for linear drifts."""
    errors = [
        np.abs(additive(method, n, lambda x: -2 * x, down) - ornstein_uhlenbeck).mean()
        for n in STEPS
    ]
    assert order(STEPS, errors) > additive_order(method) - 0.15
    assert errors[-1] < 0.03


@pytest.mark.parametrize("method", SDE_METHODS)
def test_strong_order_with_additive_noise_and_a_curved_drift(method, curved):
    """Against a fine solution on the same path; the linear drift above checks the limit."""
    steps = [16, 32, 64, 128]
    errors = [np.abs(additive(method, n, bump, start=0.0) - curved).mean() for n in steps]
    assert order(steps, errors) == pytest.approx(additive_order(method), abs=0.15)


@pytest.mark.parametrize("method", DIAGONAL)
def test_weak_order(method):
    """Bias of the mean, from paths coupled to the exact ones."""
    bias = [abs(geometric(method, n, paths=50_000).mean()) for n in STEPS[:3]]
    assert order(STEPS[:3], bias) > 0.8


# sdeint


@pytest.mark.parametrize(
    ("method", "step_size"),
    [*((name, 0.1) for name in SDE_METHODS), ("sra1", 1.0), ("milstein", 1 / 7), ("sra1", 0.03)],
)
def test_every_method_and_step_follows_one_path(method, step_size, key):
    """dx = dt + 2 dW is solved exactly by all."""
    ts = [0.5, 0.7, 1.1, 2.5]
    x0 = mx.zeros((3, 2), dtype=mx.float64)
    solution = sdeint(
        lambda t, x: mx.ones_like(x),
        lambda t, x: 2.0,
        x0,
        ts,
        key=key,
        method=method,
        step_size=step_size,
    )
    path = BrownianMotion((3, 2), 2.0, key=key, dtype=mx.float64)
    expected = [np.zeros((3, 2))] + [t - 0.5 + 2 * np.array(path(0, t - 0.5).w) for t in ts[1:]]
    np.testing.assert_allclose(np.array(solution.xs), expected, atol=1e-12)
    np.testing.assert_array_equal(np.array(solution.ts), ts)
    assert solution.stats.largest_step <= step_size * (1 + 1e-9)
    assert solution.status == Status.SUCCESS


@pytest.mark.parametrize("method", SDE_METHODS)
@pytest.mark.parametrize("ts", [[0.0, 0.3, 1.0], [1.0, 0.3, 0.0]])
def test_nothing_is_evaluated_outside_the_interval(method, ts, key):
    times = []

    def drift(t, x):
        times.append(t.item())
        return -x

    def diffusion(t, x):
        times.append(t.item())
        return 1.0

    solution = sdeint(drift, diffusion, mx.ones((2,)), ts, key=key, method=method, step_size=0.07)
    assert min(times) >= 0.0
    assert max(times) <= 1.0
    assert solution.xs.dtype == mx.float32


@pytest.mark.parametrize("method", SDE_METHODS)
def test_a_tree_has_independent_noise_in_all_its_numbers(method, key):
    x0 = {"image": mx.zeros((2000, 2, 1, 1)), "vector": mx.zeros((2000, 2))}
    scale = {"image": mx.array(2.0), "vector": mx.array([1.0, 3.0])}
    xs = sdeint(
        lambda t, x, rate: {name: rate * leaf for name, leaf in x.items()},
        lambda t, x, rate: scale,
        x0,
        [0.0, 1.0],
        key=key,
        method=method,
        step_size=0.25,
        args=(0.0,),
    ).xs
    image, vector = np.array(xs["image"])[-1].reshape(-1, 2) / 2, np.array(xs["vector"])[-1]
    assert_standard_normal(*image.T, vector[:, 0], vector[:, 1] / 3)


def test_statistics(key):
    def solve(method):
        return sdeint(
            lambda t, x: -x,
            lambda t, x: 1.0,
            mx.ones((2,)),
            [0.0, 0.5, 1.0],
            key=key,
            method=method,
            step_size=0.2,
        ).stats

    assert solve("euler_maruyama")[:3] == (6, 6, 0)
    assert solve("sra1").nfe == 12
    assert solve("sra1").largest_step == pytest.approx(1 / 6)


def blow_up(**options):
    return sdeint(
        lambda t, x: x**3,
        lambda t, x: 0.1,
        mx.full((2,), 2.0),
        [0.0, 0.01, 10.0],
        key=mx.random.key(0),
        **{"step_size": 0.1, **options},
    )


@pytest.mark.parametrize("method", SDE_METHODS)
def test_blow_up_says_so_or_keeps_what_there_is(method):
    with pytest.raises(SolverError, match="step_size=") as caught:
        blow_up(method=method)
    assert caught.value.status == Status.NON_FINITE
    assert caught.value.t == pytest.approx(0.01)
    solution = blow_up(method=method, throw=False)
    assert solution.status == Status.NON_FINITE
    assert len(solution.ts) == len(solution.xs) == 2
    assert mx.isfinite(solution.xs).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "euler"}, ", ".join(SDE_METHODS)),
        ({"step_size": 0.0}, "step_size is 0.0"),
        ({"step_size": 1e-9}, "max_steps=1000000000"),
        ({"ts": [0.0]}, "two or more times"),
        ({"ts": [0.0, 0.5, 0.5]}, "strictly increase"),
        ({"ts": [0.0, 0.5, 0.2]}, "strictly increase"),
        ({"method": "sra1", "diffusion": lambda t, x: x}, "stochastic_heun"),
        ({"diffusion": lambda t, x: mx.ones((5,))}, "noise is diagonal"),
        ({"drift": lambda t, x: x[:2]}, "expected those of x0"),
    ],
)
def test_refusals_say_what_to_do(options, message, key):
    call = {
        "drift": lambda t, x: -x,
        "diffusion": lambda t, x: 1.0,
        "x0": mx.ones((4, 3)),
        "ts": [0.0, 1.0],
        "step_size": 0.1,
    }
    call.update(options)
    with pytest.raises(ValueError, match=message):
        sdeint(
            call.pop("drift"),
            call.pop("diffusion"),
            call.pop("x0"),
            call.pop("ts"),
            key=key,
            **call,
        )


@pytest.mark.parametrize("span", [0.0, -1.0, math.inf])
def test_a_path_needs_a_length(span):
    with pytest.raises(ValueError, match="span"):
        motion(span=span)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.7, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_intervals_lie_in_the_path(interval):
    with pytest.raises(ValueError, match="expected an interval in"):
        motion()(*interval)


# Sampling: the same marginals with and without noise

MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[1.5, 0.6], [0.6, 0.4]])


def gaussian_field(t, x):
    """Velocity from N(0, I) to N(MEAN, COVARIANCE) on the linear path."""
    t = float(t)
    now = (1 - t) ** 2 * np.eye(2) + t**2 * COVARIANCE
    slope = (t * COVARIANCE - (1 - t) * np.eye(2)) @ np.linalg.inv(now)
    mean, slope = mx.array(MEAN, dtype=x.dtype), mx.array(slope.T, dtype=x.dtype)
    return mean + (x - t * mean) @ slope


def gaussian_score(t, x):
    t = float(t)
    now = (1 - t) ** 2 * np.eye(2) + t**2 * COVARIANCE
    return (t * mx.array(MEAN, dtype=x.dtype) - x) @ mx.array(np.linalg.inv(now), dtype=x.dtype)


@pytest.mark.parametrize("score", [None, gaussian_score])
@pytest.mark.parametrize("noise", [0.0, 4.0, lambda t: 5 * (1 - t)])
def test_samples_with_noise_have_the_marginals_of_the_flow(noise, score, key):
    n, ts = 10_000, [0.0, 0.5, 1.0]
    x0 = mx.random.normal((n, 2), key=mx.random.key(1))
    xs = np.array(sample_sde(gaussian_field, x0, key=key, noise=noise, score=score, ts=ts).xs)
    for t, x in zip(ts, xs.astype(np.float64), strict=True):
        covariance = (1 - t) ** 2 * np.eye(2) + t**2 * COVARIANCE
        z = (x - t * MEAN) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=5 / math.sqrt(n))
        np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=7 / math.sqrt(n))
    # Noise forgets the start; the flow does not.
    flow = np.array(sample(gaussian_field, x0).xs)[-1]
    kept = np.corrcoef(xs[-1][:, 0], flow[:, 0])[0, 1]
    assert kept > 0.999 if noise == 0.0 else kept < 0.9


@pytest.mark.parametrize("method", SDE_METHODS)
def test_every_method_reaches_the_data(method, key):
    x0 = mx.random.normal((8, 2), key=key)
    xs = sample_sde(gaussian_field, x0, key=key, method=method, step_size=0.25).xs
    assert mx.isfinite(xs).all()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"ts": [1.0, 0.0]}, "ts"), ({"ts": [0.0, 1.5]}, "ts"), ({"noise": -1.0}, "noise")],
)
def test_sampling_refuses_what_has_no_meaning(options, name, key):
    with pytest.raises(ValueError, match=name):
        sample_sde(gaussian_field, mx.zeros((2, 2)), key=key, **options)


@pytest.mark.parametrize("method", SDE_METHODS)
def test_a_solve_can_be_vmapped_whole(method, key):
    def end(x):
        options = {"key": key, "method": method, "step_size": 0.25}
        return sdeint(lambda t, x: -x, lambda t, x: 0.3, x, [0.0, 1.0], **options).xs[-1]

    x = mx.array([[1.0, 2.0], [3.0, -1.0]])
    each = mx.stack([end(row) for row in x])
    # Each row sees the noise of its own shape, drawn from the one key.
    assert mx.allclose(mx.vmap(end)(x), each, rtol=1e-5)


def test_a_method_is_a_name(key):
    with pytest.raises(ValueError, match="unknown method"):
        sdeint(
            lambda t, x: x,
            lambda t, x: 1.0,
            mx.ones(1),
            [0.0, 1.0],
            key=key,
            method=["milstein"],
            step_size=1,
        )
