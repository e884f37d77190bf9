"""Steps of their own for each sample."""

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmlx.solvers import (
    ADAPTIVE,
    Controller,
    SolverError,
    Status,
    odeint,
    odeint_per_sample,
)

RATES = np.array([0.1, 0.5, 1.0, 3.0, 10.0, 40.0])


def decay(t, x, rates):
    """x = 1 / (1 + rate t^2) from x(0) = 1: the larger the rate, the shorter the steps."""
    return -2 * rates * t[:, None] * x * x


def solve(rates=RATES, ts=(0.0, 0.5, 2.0), dtype=mx.float64, **options):
    column = mx.array(rates, dtype=dtype)[:, None]
    ts = np.asarray(ts)
    x0 = mx.array(1 / (1 + np.outer(rates, [ts[0] ** 2] * 2)), dtype=dtype)
    return odeint_per_sample(decay, x0, ts, args=(column,), **options)


@pytest.mark.parametrize(
    ("method", "ts"),
    [(method, np.linspace(0, 2, 33)) for method in ADAPTIVE]
    + [("dopri5", np.linspace(2, 0, 33)), ("bosh3", [0.0, 2.0])],
)
def test_closed_form(method, ts):
    solution = solve(ts=ts, method=method, rtol=1e-7, atol=1e-7)
    expected = 1 / (1 + np.asarray(ts)[:, None, None] ** 2 * RATES[:, None])
    error = np.abs(np.array(solution.xs) - expected).max(axis=(0, 2))
    # Going back the solution amplifies errors by (1 + rate t^2)^2.
    growth = (1 + RATES * 4) ** 2 if ts[0] > ts[-1] else 1
    assert (error < 5e-6 * growth).all()
    assert solution.status == [Status.SUCCESS] * len(RATES)
    np.testing.assert_allclose(np.array(solution.ts), ts)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_one_sample_takes_the_steps_of_odeint(method):
    ts = np.linspace(0, 2, 9)
    for rate in RATES.tolist():
        alone = odeint(
            lambda t, x, r=rate: -2 * r * t * x * x,
            mx.ones((1, 2), dtype=mx.float64),
            ts,
            method=method,
        )
        own = solve([rate], ts=ts, method=method)
        assert own.stats.accepted.tolist() == [alone.stats.accepted]
        assert own.stats.rejected.tolist() == [alone.stats.rejected]
        assert own.stats.nfe == alone.stats.nfe
        np.testing.assert_allclose(
            [own.stats.smallest_step.item(), own.stats.largest_step.item()],
            [alone.stats.smallest_step, alone.stats.largest_step],
            rtol=1e-6,
        )
        np.testing.assert_allclose(np.array(own.xs), np.array(alone.xs), rtol=1e-10)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(len(RATES))), st.integers(1, len(RATES)))
def test_results_do_not_depend_on_the_batch(order, size):
    chosen = list(order)[:size]
    ts = np.linspace(0, 2, 5)
    together, apart = solve(ts=ts, dtype=mx.float32), solve(RATES[chosen], ts, dtype=mx.float32)
    assert mx.array_equal(together.xs[:, mx.array(chosen)], apart.xs)
    for name in ("accepted", "rejected", "smallest_step", "largest_step"):
        together_stat = np.array(getattr(together.stats, name))[chosen]
        np.testing.assert_array_equal(together_stat, np.array(getattr(apart.stats, name)))


def test_a_fast_sample_does_not_shorten_the_steps_of_a_slow_one():
    stats = solve(rtol=1e-6, atol=1e-6).stats
    accepted = stats.accepted.tolist()
    assert accepted == sorted(accepted)
    assert accepted[-1] > 2 * accepted[0]
    assert stats.nfe == 2 + 6 * max(
        a + r for a, r in zip(accepted, stats.rejected.tolist(), strict=True)
    )


@pytest.mark.parametrize("ts", [[0.1, 1.7], [1.7, 0.1]])
def test_field_sees_a_time_for_each_sample_inside_the_interval(ts):
    seen = []

    def field(t, x):
        seen.append(np.array(t))
        return mx.cos(9 * t)[:, None] * mx.array([[1.0], [9.0]])

    odeint_per_sample(field, mx.zeros((2, 1)), ts)
    times = np.stack(seen)
    assert times.shape[1:] == (2,)
    assert np.float32(0.1) <= times.min() <= times.max() <= np.float32(1.7)
    assert (times[:, 0] != times[:, 1]).any()


def test_trees():
    def field(t, state):
        x, y = state
        return -2 * t[:, None] * x * x, y / (1 + t)

    x0 = (mx.ones((3, 2)), mx.array([1.0, 2.0, 3.0]))
    solution = odeint_per_sample(field, x0, [0.0, 1.0, 2.0], rtol=1e-6, atol=1e-6)
    x, y = solution.xs
    assert (x.shape, y.shape) == ((3, 3, 2), (3, 3))
    np.testing.assert_allclose(np.array(x)[:, 0, 0], [1, 0.5, 0.2], atol=1e-5)
    np.testing.assert_allclose(np.array(y), np.outer([1, 2, 3], [1, 2, 3]), atol=1e-4)


def test_controls_bound_the_steps_of_every_sample():
    stats = solve(control=Controller(dtmax=0.1, first_step=0.01)).stats
    assert (np.array(stats.largest_step) <= 0.101).all()
    assert stats.nfe == 1 + 6 * max(
        a + r for a, r in zip(stats.accepted.tolist(), stats.rejected.tolist(), strict=True)
    )


def square(t, x):
    return x * x  # 1 / (1/x0 - t)


STARTS = [0.1, 1.0, 2.0, math.nan]


def test_failures_are_named_for_each_sample():
    x0, ts, seen = mx.array(STARTS)[:, None], [0.0, 0.4, 0.8, 1.5], []

    def field(t, x):
        seen.append(np.array(t))
        return square(t, x)

    solution = odeint_per_sample(field, x0, ts, throw=False)
    assert 0 <= np.min(seen) <= np.max(seen) <= 1.5
    assert solution.status == ["success", "stagnation", "stagnation", "non_finite"]
    exact = 1 / (1 / np.array(STARTS)[None] - np.array(ts)[:, None])
    reached = np.array(ts)[:, None] < 1 / np.array(STARTS)[None]
    xs = np.array(solution.xs)[..., 0]
    np.testing.assert_allclose(xs[reached], exact[reached], rtol=1e-3)
    assert np.isnan(xs[~reached]).all()
    assert mx.isnan(solution.xs[0, 3]).item()
    with pytest.raises(SolverError, match=r"sample 1 of 4, at t=1 .*odeint_per_sample\("):
        odeint_per_sample(square, x0, ts)


def test_max_steps_counts_for_each_sample():
    free = solve(rtol=1e-7, atol=1e-7)
    needed = np.array(free.stats.accepted) + np.array(free.stats.rejected)
    limit = int(np.median(needed))
    done = needed <= limit
    first = int(np.argmin(done))
    words = rf"sample {first} of 6, took max_steps={limit} steps and is at .*odeint_per_sample\("
    with pytest.raises(SolverError, match=words) as caught:
        solve(rtol=1e-7, atol=1e-7, max_steps=limit)
    assert caught.value.status is Status.MAX_STEPS
    partial = solve(rtol=1e-7, atol=1e-7, max_steps=limit, throw=False)
    assert partial.status == ["success" if flag else "max_steps" for flag in done]
    assert 0 < done.sum() < len(RATES)
    np.testing.assert_array_equal(np.array(partial.xs)[:, done], np.array(free.xs)[:, done])
    assert np.isnan(np.array(partial.xs)[-1, ~done]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "rk4"}, "method is 'rk4'; expected an adaptive one"),
        ({"method": "ab2"}, "method is 'ab2'; expected an adaptive one"),
        ({"x0": mx.array(1.0)}, "x0 has shapes"),
        ({"x0": {"a": mx.ones(2), "b": mx.ones(3)}}, "x0 has shapes"),
        ({"ts": [0.0, 0.0]}, "ts[0] = 0.0"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match="expected") as caught:
        odeint_per_sample(lambda t, x: x, **({"x0": mx.ones(2), "ts": [0.0, 1.0]} | options))
    assert words in str(caught.value)
