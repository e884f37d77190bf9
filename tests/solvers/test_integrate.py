"""odeint: orders, output times, directions, limits, and every way a solve can fail."""

import math
import re
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import KINDS
from mlx.utils import tree_flatten, tree_map
from scipy.integrate import solve_ivp

from flowmlx.solvers import ADAPTIVE, METHODS, SolverError, Status, odeint, odeint_per_sample
from flowmlx.solvers.runge_kutta import Tableau

FIXED = [name for name in METHODS if name not in ADAPTIVE]


class Recorded:
    """A field that remembers the times and the number of its evaluations."""

    def __init__(self, field):
        self.field, self.times = field, []

    def __call__(self, t, x, *args):
        self.times.append(t.item())
        return self.field(t, x, *args)


# x = sqrt(1 + t^2), y = 1 / (1 + t^2): non-linear, coupled, not autonomous, and made of operations
# that MLX computes exactly in float64.
def curved(t, z):
    x, y = z[0], z[1]
    return mx.stack([t / x, -2 * t * y * y * (x * x - t * t)])


def curved_solution(ts):
    ts = np.asarray(ts)
    return np.stack([np.sqrt(1 + ts**2), 1 / (1 + ts**2)], axis=1)


def curved_start(t=0.0):
    return mx.array(curved_solution([t])[0], dtype=mx.float64)


# name -> (field, solution), as functions of t only up to the start at t = 1
PROBLEMS = {
    "constant": (lambda t, x: mx.full(x.shape, 0.2), lambda t: 0.2 * t + 1),
    "linear": (lambda t, x: (x - 1) / t + 0 * x, lambda t: 3 * t + 1),
    "sine": (lambda t, x: mx.cos(t) * mx.ones_like(x), lambda t: np.sin(t)),
    "exponential": (lambda t, x: -0.5 * x, lambda t: np.exp(-0.5 * t)),
}


FSAL = [m for m in METHODS.values() if isinstance(m, Tableau) and m.fsal]


def evaluations(method, steps):
    """Of a method with fixed steps whose states between the steps nobody asked for."""
    chosen = METHODS[method]
    if method in ("ab2", "ab3", "abm2"):
        return 2 * steps if chosen.corrector else steps + 1
    return steps * (chosen.stages - 1) + 1 if chosen in FSAL else steps * chosen.stages


def slope_of(counts, errors):
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize("method", METHODS)
def test_convergence_order_at_the_end(method):
    order = METHODS[method].order
    counts = [48, 96, 192]
    errors = []
    for n in counts:
        xs = odeint(curved, curved_start(), [0.0, 2.0], method=method, step_size=2 / n).xs
        errors.append(np.abs(np.array(xs)[-1] - curved_solution([2.0])[0]).max())
    assert slope_of(counts, errors) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("method", [*KINDS, "tsit5"])
def test_convergence_order_between_the_steps(method):
    order = METHODS[method].order
    ts = [0.0, *np.linspace(0.03, 1.97, 41), 2.0]
    counts = [8, 16, 32, 64]
    errors = []
    for n in counts:
        xs = odeint(curved, curved_start(), ts, method=method, step_size=2 / n).xs
        errors.append(np.abs(np.array(xs) - curved_solution(ts)).max())
    assert slope_of(counts, errors) > order - 0.35


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [("bosh3", 1e-4), ("bosh3", 1e-7), ("dopri5", 1e-4), ("dopri5", 1e-10), ("tsit5", 1e-7)],
)
def test_adaptive_error_follows_the_tolerance(method, tolerance):
    ts = np.linspace(0, 2, 33)
    solution = odeint(curved, curved_start(), ts, method=method, rtol=tolerance, atol=tolerance)
    assert np.abs(np.array(solution.xs) - curved_solution(ts)).max() < 30 * tolerance


def test_agrees_with_scipy_at_tight_tolerance():
    """The Arenstorf orbit (Hairer, Norsett & Wanner I, II.0) for most of a period."""
    mu = 0.012277471

    def field(t, z):
        x, y, u, v = z[0], z[1], z[2], z[3]
        d1 = ((x + mu) ** 2 + y**2) ** 1.5
        d2 = ((x - 1 + mu) ** 2 + y**2) ** 1.5
        return mx.stack(
            [
                u,
                v,
                x + 2 * v - (1 - mu) * (x + mu) / d1 - mu * (x - 1 + mu) / d2,
                y - 2 * u - (1 - mu) * y / d1 - mu * y / d2,
            ]
        )

    def host(t, z):
        x, y, u, v = z
        d1 = ((x + mu) ** 2 + y**2) ** 1.5
        d2 = ((x - 1 + mu) ** 2 + y**2) ** 1.5
        return [
            u,
            v,
            x + 2 * v - (1 - mu) * (x + mu) / d1 - mu * (x - 1 + mu) / d2,
            y - 2 * u - (1 - mu) * y / d1 - mu * y / d2,
        ]

    start = [0.994, 0.0, 0.0, -2.00158510637908]
    ts = np.linspace(0, 5, 21)
    expected = solve_ivp(host, (0, 5), start, "DOP853", t_eval=ts, rtol=1e-12, atol=1e-12).y.T
    xs = odeint(field, mx.array(start, dtype=mx.float64), ts, rtol=1e-10, atol=1e-10).xs
    assert np.abs(np.array(xs)[:, :2] - expected[:, :2]).max() < 1e-6


@pytest.mark.parametrize(
    ("method", "problem", "reverse"),
    [(method, problem, False) for method in ("ab3", "dopri5") for problem in PROBLEMS]
    + [(method, "sine", True) for method in ("euler", "rk4", "abm2", "bosh3", "tsit5")],
)
def test_closed_forms_forward_and_back(method, problem, reverse):
    field, solution = PROBLEMS[problem]
    ts = np.linspace(1, 8, 57)[:: -1 if reverse else 1]
    x0 = mx.array([[solution(ts[0])]] * 2)
    solved = odeint(field, x0, ts, method=method, step_size=None if method in ADAPTIVE else 0.05)
    error = np.abs(np.array(solved.xs) - solution(ts)[:, None, None]).max()
    assert solved.status is Status.SUCCESS
    assert error < (0.5 if method == "euler" else 1e-2)
    np.testing.assert_allclose(np.array(solved.ts), ts, rtol=1e-6)


@pytest.mark.parametrize("method", KINDS)
def test_reversal_returns_the_start(method):
    step = None if method in ADAPTIVE else 0.01
    options = {"method": method, "rtol": 1e-8, "atol": 1e-8, "step_size": step}
    there = odeint(curved, curved_start(), [0.0, 1.5], **options).xs[-1]
    back = odeint(curved, there, [1.5, 0.0], **options).xs[-1]
    error = np.abs(np.array(back - curved_start())).max()
    assert error < (0.05 if method == "euler" else 3e-4)


@pytest.mark.parametrize("method", KINDS)
def test_first_state_is_x0_and_every_time_is_returned(method):
    x0 = mx.random.normal((3, 2), key=mx.random.key(1))
    ts = [0.0, 0.1, 0.15, 1.0, 1.01]
    solution = odeint(lambda t, x: -x, x0, ts, method=method)
    assert mx.array_equal(solution.xs[0], x0)
    assert solution.xs.shape == (5, 3, 2)
    expected = np.exp(-np.array(ts))[:, None, None] * np.array(x0)
    assert np.abs(np.array(solution.xs) - expected).max() < (0.4 if method in FIXED else 1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_fixed_methods_count_their_evaluations(method):
    field = Recorded(curved)
    stats = odeint(field, curved_start(), np.linspace(0, 1, 18), method=method, step_size=0.1).stats
    # Cubic Hermite output needs the slope at the end of the last step too.
    last = 0 if METHODS[method] in FSAL else 1
    assert stats.nfe == len(field.times) == evaluations(method, 10) + last
    assert (stats.accepted, stats.rejected) == (10, 0)
    assert stats.smallest_step == pytest.approx(0.1)
    assert stats.largest_step == pytest.approx(0.1)


@pytest.mark.parametrize("method", FIXED)
def test_fixed_methods_step_from_output_to_output(method):
    ts = [0.0, 0.1, 0.5, 2.0]
    stats = odeint(curved, curved_start(), ts, method=method).stats
    assert stats.nfe == evaluations(method, 3)
    assert stats.smallest_step == pytest.approx(0.1)
    assert stats.largest_step == pytest.approx(1.5)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_evaluations_do_not_grow_with_output_times(method):
    nfe = [
        odeint(curved, curved_start(), np.linspace(0, 2, n), method=method).stats.nfe
        for n in (2, 128)
    ]
    assert nfe[0] == nfe[1]


@pytest.mark.parametrize("method", ADAPTIVE)
def test_counts_of_adaptive_methods(method):
    field = Recorded(curved)
    stats = odeint(field, curved_start(), [0.0, 2.0], method=method).stats
    trials = stats.accepted + stats.rejected
    # Two evaluations choose the first step; each trial reuses the slope at its start.
    assert stats.nfe == len(field.times) == 2 + trials * (METHODS[method].stages - 1)
    assert 0 < stats.smallest_step <= stats.largest_step <= 2


@pytest.mark.parametrize("method", KINDS)
def test_field_is_never_evaluated_outside(method):
    for ts in ([0.0, 0.1, 0.7], [0.7, 0.3, 0.1], [-0.3, 0.0, 1 / 3], [1e3, 1e3 + 1]):
        ends = np.array([min(ts), max(ts)], dtype=np.float32)
        for step_size in (None, 0.07):
            field = Recorded(lambda t, x: -x)
            odeint(field, mx.ones(2), ts, method=method, step_size=step_size)
            assert ends[0] <= min(field.times) <= max(field.times) <= ends[1]


@pytest.mark.parametrize("method", KINDS)
def test_field_is_never_evaluated_outside_by_rounding(method):
    """t + (t_next - t) lies beyond t_next for about one of these pairs in five."""
    for ends in (np.random.default_rng(0).uniform(0, 1, (30, 2)) ** 4).tolist():
        field = Recorded(lambda t, x: -x)
        odeint(field, mx.ones(2, dtype=mx.float64), ends, method=method, rtol=1e9)
        assert min(ends) <= min(field.times) <= max(field.times) <= max(ends)


def test_a_span_that_rounds_up_takes_no_extra_step():
    assert 2.1 / 0.3 > 7
    for ts in ([0.0, 2.1], [2.1, 0.0]):
        stats = odeint(lambda t, x: -x, mx.ones(1), ts, method="euler", step_size=0.3).stats
        assert stats.accepted == 7
    stats = odeint(lambda t, x: -x, mx.ones(1), [0.0, 1.0], method="euler", step_size=0.3).stats
    assert (stats.accepted, stats.largest_step) == (4, 0.25)


@pytest.mark.parametrize("method", KINDS)
def test_times_close_together_near_zero(method):
    ts = [0.0, 1e-12, 2e-12, 1e-9, 1e-6, 1e-6 + 1e-9, 1.0]
    xs = odeint(lambda t, x: mx.ones_like(x), mx.zeros(1), ts, method=method).xs
    np.testing.assert_allclose(np.array(xs)[:, 0], ts, rtol=2e-6)


def test_fixed_grid_does_not_accumulate_time():
    field = Recorded(lambda t, x: mx.zeros_like(x))
    odeint(field, mx.zeros(1, dtype=mx.float64), [0.0, 1.0], method="euler", step_size=0.001)
    assert field.times == [k * 1.0 / 1000 for k in range(1000)]


class Pair(NamedTuple):
    x: mx.array
    y: mx.array


TREES = {
    "dict": lambda x, y: {"x": x, "y": y},
    "list": lambda x, y: [x, y],
    "tuple": lambda x, y: (x, (y,)),
    "named": lambda x, y: Pair(x, y),
}


@pytest.mark.parametrize(
    ("method", "tree"),
    [("rk4", "dict"), ("ab3", "list"), ("bosh3", "tuple"), ("dopri5", "named"), ("dopri5", "dict")],
)
def test_trees_solve_like_arrays(method, tree):
    build = TREES[tree]

    def parts(state):
        if isinstance(state, dict):
            return state["x"], state["y"]
        x, y = state
        return (x, y[0]) if isinstance(y, tuple) else (x, y)

    def field(t, state):
        x, y = parts(state)
        return build(t / x, -2 * t * y * y * (x * x - t * t))

    z = curved_start()
    ts = np.linspace(0, 2, 9)
    plain = odeint(curved, z, ts, method=method)
    solution = odeint(field, build(z[0], z[1].reshape(1, 1)), ts, method=method)
    x, y = parts(solution.xs)
    assert type(solution.xs) is type(build(z[0], z[1]))
    assert x.shape == (9,)
    assert y.shape == (9, 1, 1)
    np.testing.assert_allclose(np.array(x), np.array(plain.xs)[:, 0], rtol=1e-12)
    np.testing.assert_allclose(np.array(y)[:, 0, 0], np.array(plain.xs)[:, 1], rtol=1e-12)
    assert solution.stats == plain.stats


def test_leaves_keep_their_dtypes():
    def field(t, state):
        assert state["half"].dtype == mx.float16
        assert state["single"].dtype == mx.float32
        return {"half": -state["half"], "single": mx.ones(2)}

    x0 = {"half": mx.ones(3, dtype=mx.float16), "single": mx.zeros(2)}
    xs = odeint(field, x0, [0.0, 1.0], rtol=1e-3, atol=1e-3).xs
    assert xs["half"].dtype == mx.float16
    assert xs["single"].dtype == mx.float32
    assert xs["half"][-1, 0].item() == pytest.approx(math.exp(-1), abs=2e-3)
    np.testing.assert_allclose(np.array(xs["single"][-1]), 1, atol=1e-6)


def test_args_reach_the_field():
    solution = odeint(
        lambda t, x, a, b: a * x + b["c"], mx.ones(2), [0.0, 1.0], args=(-0.5, {"c": 2.0})
    )
    np.testing.assert_allclose(np.array(solution.xs)[-1], 4 - 3 * np.exp(-0.5), atol=1e-4)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.float16, mx.bfloat16])
def test_dtype_of_the_state_is_kept(dtype):
    seen = []

    def field(t, x):
        seen.append(t.dtype)
        return -x

    xs = odeint(field, mx.ones(3, dtype=dtype), [0.0, 1.0], rtol=1e-2, atol=1e-2).xs
    assert xs.dtype == dtype
    assert set(seen) == {mx.float64 if dtype == mx.float64 else mx.float32}
    assert float(xs[-1, 0].astype(mx.float32)) == pytest.approx(math.exp(-1), abs=2e-2)


@pytest.mark.parametrize("method", ["euler", "ab3", "dopri5"])
def test_a_compiled_field_is_traced_once(method):
    """Times and states are arrays of the same shapes and dtypes in all steps and solves."""
    traces = []

    @mx.compile
    def field(t, x):
        traces.append(t)
        return -x * t

    mx.enable_compile()
    options = {"method": method} if method in ADAPTIVE else {"method": method, "step_size": 0.1}
    for ts in ([0.0, 0.3, 1.0], [1.0, 0.5], [0.0, 2.0]):
        odeint(field, mx.ones((3, 2)), ts, **options)
    assert len(traces) == 1


@pytest.mark.parametrize("method", KINDS)
def test_fixed_steps_can_be_compiled_and_vmapped_whole(method):
    options = {"method": method, "step_size": 0.25}

    def end(x):
        return odeint(lambda t, x: -x * t, x, [0.0, 0.3, 1.0], **options).xs

    x = mx.array([[1.0, 2.0], [3.0, -1.0]])
    mx.enable_compile()
    assert mx.allclose(mx.vmap(end, out_axes=1)(x), end(x), rtol=1e-6)
    if method in ("euler", "bosh3"):  # compiling takes seconds
        assert mx.allclose(mx.compile(end)(x), end(x), rtol=1e-6)


@pytest.mark.parametrize("solve", [odeint, odeint_per_sample])
@pytest.mark.parametrize("way", [mx.compile, mx.vmap])
def test_adaptive_steps_refuse_to_be_traced(solve, way):
    mx.enable_compile()
    with pytest.raises(ValueError, match="compile the field instead, or take fixed steps"):
        way(lambda x: solve(lambda t, x: -x, x, [0.0, 1.0]).xs)(mx.ones((3, 2, 2)))


# --- what goes wrong -----------------------------------------------------------------------------


def blow_up(t, x):
    return x * x  # 1 / (1 - t) from x(0) = 1


def nan_after_half(t, x):
    return mx.where(t > 0.5, mx.array(float("nan")), -x)


FAILURES = {
    "blow-up": (blow_up, {}, Status.STAGNATION, 1.0, ["blows up", "odeint("]),
    "nan": (nan_after_half, {}, Status.NON_FINITE, 0.5, ["not finite", "odeint("]),
    "max_steps": (
        lambda t, x: 100 * mx.cos(100 * t) * x,
        {"max_steps": 20},
        Status.MAX_STEPS,
        None,
        ["max_steps=20", "max_steps=200", "odeint("],
    ),
    "jump to infinity": (
        lambda t, x: mx.where(t > 0.3, mx.array(float("inf")), x),
        {},
        Status.NON_FINITE,
        0.3,
        ["not finite", "odeint("],
    ),
    "nan at the start": (
        lambda t, x: x * float("nan"),
        {},
        Status.NON_FINITE,
        0.0,
        ["field(mx.array(0.0), x0)"],
    ),
}


@pytest.mark.parametrize(
    ("method", "failure"),
    [*(("dopri5", name) for name in FAILURES), ("bosh3", "blow-up"), ("tsit5", "nan")],
)
def test_adaptive_failures_are_named(method, failure):
    field, options, status, t, words = FAILURES[failure]
    ts = np.linspace(0, 2, 21)
    with pytest.raises(SolverError) as caught:
        odeint(field, mx.ones(2), ts, method=method, **options)
    message = str(caught.value)
    for word in [*words, method, "dt=", f"t={caught.value.t:.6g}"]:
        assert word in message
    assert t is None or caught.value.t == pytest.approx(t, abs=1e-3)
    assert isinstance(caught.value, RuntimeError)
    assert caught.value.status is status

    partial = odeint(field, mx.ones(2), ts, method=method, throw=False, **options)
    assert partial.status is status
    assert len(partial.ts) == len(partial.xs) < len(ts)
    assert mx.all(mx.isfinite(partial.xs))
    np.testing.assert_allclose(np.array(partial.ts), ts[: len(partial.ts)], rtol=1e-6)
    reached = np.searchsorted(ts, caught.value.t, side="right")
    assert len(partial.ts) == max(reached, 1)


@pytest.mark.parametrize(
    ("method", "rate", "solve"),
    [
        ("bosh3", 1e6, odeint),
        ("dopri5", 1e3, odeint),
        ("dopri5", 1e6, odeint_per_sample),
        ("tsit5", 1e3, odeint_per_sample),
    ],
)
def test_a_stiff_field_is_called_stiff_and_its_rate_is_given(method, rate, solve):
    """And one that only asks for many steps is not."""

    def stiff(t, x):
        return -rate * (x - mx.cos(t).reshape(-1, 1))

    options = {"method": method, "max_steps": 300}
    words = rf"stiff .* at a rate of {re.escape(f'{rate:.2g}')},.*max_steps=3000"
    with pytest.raises(SolverError, match=words):
        solve(stiff, mx.ones((2, 1)), [0.0, 100.0], **options)

    def busy(t, x):
        return 30 * mx.cos(100 * t).reshape(-1, 1) - x

    with pytest.raises(SolverError, match="Allow more steps") as caught:
        solve(busy, mx.ones((2, 1)), [0.0, 100.0], **options)
    assert caught.value.status is Status.MAX_STEPS


@pytest.mark.parametrize("method", KINDS)
def test_fixed_steps_that_leave_the_finite_numbers(method):
    ts = np.linspace(0, 2, 21)
    options = {"method": method, "step_size": 0.01}
    with pytest.raises(SolverError, match=r"not finite .* after t=0\.5 .*dt=0\.01.*odeint\("):
        odeint(nan_after_half, mx.ones(2), ts, **options)
    partial = odeint(nan_after_half, mx.ones(2), ts, throw=False, **options)
    assert partial.status is Status.NON_FINITE
    assert partial.xs.shape == (6, 2)
    tolerance = 0.01 if METHODS[method].order == 1 else 1e-4
    np.testing.assert_allclose(np.array(partial.xs)[:, 0], np.exp(-ts[:6]), atol=tolerance)


def test_slope_that_is_not_finite_at_the_end_shows_in_the_states_before_it():
    """Euler's last state does not know, but the cubic inside the last step does."""

    def field(t, x):
        return mx.where(t >= 1, mx.array(math.inf), mx.ones_like(x))

    options = {"method": "euler", "step_size": 0.25}
    assert odeint(field, mx.zeros(1), [0.0, 1.0], **options).xs[-1].item() == 1
    partial = odeint(field, mx.zeros(1), [0.0, 0.5, 0.7, 0.9, 1.0], throw=False, **options)
    assert partial.status == "non_finite"
    assert partial.ts.tolist() == pytest.approx([0.0, 0.5, 0.7])


@pytest.mark.parametrize("method", KINDS)
def test_fixed_steps_stop_at_max_steps(method):
    options = {"method": method, "step_size": 0.01, "max_steps": 30}
    ts = [0.0, 0.2, 0.4]
    with pytest.raises(SolverError, match=r"max_steps=30 steps and is at t=0\.3, dt=0\.01"):
        odeint(lambda t, x: -x, mx.ones(2), ts, **options)
    partial = odeint(lambda t, x: -x, mx.ones(2), ts, throw=False, **options)
    assert (partial.status, len(partial.xs)) == (Status.MAX_STEPS, 2)


def test_tolerance_below_rounding_is_stagnation():
    options = {"rtol": 1e-12, "atol": 1e-12, "max_steps": 100}
    with pytest.raises(SolverError, match=r"rounding error of a float32 .*rtol=") as caught:
        odeint(lambda t, x: mx.sin(40 * t) * x, mx.ones(64), [1.0, 9.0], **options)
    assert caught.value.status is Status.STAGNATION


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "dopri"}, ["unknown method 'dopri'", "dopri5", "euler"]),
        ({"ts": [0.0]}, ["ts has shape (1,)", "two or more"]),
        ({"ts": []}, ["ts has shape (0,)", "two or more"]),
        ({"ts": 1.0}, ["ts has shape ()", "two or more"]),
        ({"ts": [[0.0, 1.0]]}, ["ts has shape (1, 2)"]),
        ({"ts": [0.0, 0.5, 0.5, 1.0]}, ["ts[1] = 0.5", "ts[2] = 0.5", "strictly"]),
        ({"ts": [0.0, 0.6, 0.5, 1.0]}, ["ts[1] = 0.6", "ts[2] = 0.5", "strictly"]),
        ({"ts": [1.0, 0.4, 0.5, 0.0]}, ["ts[1] = 0.4", "ts[2] = 0.5"]),
        ({"ts": [1.0, 1.0]}, ["ts[0] = 1.0", "ts[1] = 1.0"]),
        ({"ts": [1.0, 1.0 + 1e-9]}, ["ts[0] = 1.0", "float32"]),
        ({"ts": [0.0, math.nan]}, ["ts", "nan"]),
        ({"ts": [0.0, math.inf]}, ["ts", "inf"]),
        ({"rtol": -1e-3}, ["rtol is -0.001"]),
        ({"atol": -1.0}, ["atol is -1.0"]),
        ({"atol": math.nan}, ["atol is nan"]),
        ({"rtol": 0.0, "atol": 0.0}, ["rtol and atol are both 0"]),
        ({"step_size": 0.0}, ["step_size is 0.0"]),
        ({"step_size": -0.1}, ["step_size is -0.1"]),
        ({"step_size": math.nan}, ["step_size is nan"]),
        ({"max_steps": 0}, ["max_steps is 0"]),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=r"expected|known") as caught:
        odeint(lambda t, x: -x, mx.ones(2), **({"ts": [0.0, 1.0]} | options))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("x0", [[1.0, None], {"a": None}, mx.array([1j, 2]), {}, "12"])
def test_states_that_are_no_arrays(x0):
    with pytest.raises(TypeError, match=r"x0 (is|holds) .*expected"):
        odeint(lambda t, x: x, x0, [0.0, 1.0])


@pytest.mark.parametrize("x0", [1.0, np.ones(2), mx.array([1, 2], mx.uint8), {"a": 1, "b": [2.0]}])
def test_numbers_become_floating_arrays(x0):
    def field(t, x):
        return tree_map(lambda leaf: -leaf, x)

    state = tree_map(lambda leaf: mx.array(leaf).astype(mx.float32), x0)
    xs, expected = (odeint(field, x, [0.0, 1.0]).xs for x in (x0, state))
    for (_, a), (_, b) in zip(tree_flatten(xs), tree_flatten(expected), strict=True):
        assert a.dtype == mx.float32
        assert mx.array_equal(a, b)


@pytest.mark.parametrize("x0", [[1.0, 2.0], ([0, 1], [2, 3])])
def test_a_list_of_numbers_is_one_array(x0):
    xs = odeint(lambda t, x: -x, x0, [0.0, 1.0]).xs
    assert mx.array_equal(xs, odeint(lambda t, x: -x, mx.array(x0, mx.float32), [0.0, 1.0]).xs)
    two = odeint(lambda t, x: (-x[0], x[1]), (1.0, mx.array(2.0)), [0.0, 1.0]).xs
    assert [x.shape for x in two] == [(2,), (2,)]


@pytest.mark.parametrize(
    "field", [lambda t, x: x[0], lambda t, x: x.astype(mx.float16), lambda t, x: [x, x]]
)
def test_field_of_the_wrong_shape_or_dtype(field):
    with pytest.raises(ValueError, match=r"field\(t, x\) returned .*expected those of x0"):
        odeint(field, mx.ones((2, 3)), [0.0, 1.0])


# --- properties ----------------------------------------------------------------------------------

shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
gaps = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(
    method=st.sampled_from(list(METHODS)),
    shape=shapes,
    gaps=gaps,
    start=st.floats(-2, 2),
    sign=st.sampled_from([-1, 1]),
    dtype=st.sampled_from([mx.float32, mx.float64]),
    step_size=st.sampled_from([None, 0.02]),
)
def test_any_shape_grid_direction_and_dtype(method, shape, gaps, start, sign, dtype, step_size):
    """x' = 2 t grows by t^2, which every method but Euler integrates exactly."""
    ts = start + sign * np.cumsum([0.0, *gaps])
    x0 = mx.random.normal(shape, key=mx.random.key(2)).astype(dtype)
    solution = odeint(
        lambda t, x: 2 * t * mx.ones_like(x), x0, ts, method=method, step_size=step_size
    )
    growth = np.array(solution.xs) - np.array(x0)
    expected = (ts**2 - ts[0] ** 2).reshape(-1, *(1,) * len(shape))
    euler = sum(g * max(g if step_size is None else step_size, 0) for g in gaps)
    tolerance = 1.01 * euler if method == "euler" else 0
    assert solution.xs.shape == (len(ts), *shape)
    assert np.abs(growth - expected).max() <= tolerance + 1e-4


@settings(max_examples=20, deadline=None)
@given(method=st.sampled_from(ADAPTIVE), inner=st.lists(st.floats(0.001, 1.999), max_size=8))
def test_output_times_do_not_change_the_solution(method, inner):
    ts = [0.0, *sorted({round(t, 3) for t in inner}), 2.0]
    alone = odeint(curved, curved_start(), [0.0, 2.0], method=method)
    solution = odeint(curved, curved_start(), ts, method=method)
    assert mx.array_equal(solution.xs[-1], alone.xs[-1])
    assert solution.stats == alone.stats
    assert np.abs(np.array(solution.xs) - curved_solution(ts)).max() < 2e-3


# --- dense solutions, events, progress -----------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "reverse"), [*((name, False) for name in KINDS), ("ab3", True), ("dopri5", True)]
)
def test_dense_solution_is_the_solution(method, reverse):
    ts = np.linspace(0, 2, 21)[:: -1 if reverse else 1]
    step = None if method in ADAPTIVE else 0.01
    options = {"method": method, "step_size": step, "rtol": 1e-7, "atol": 1e-7}
    solution = odeint(curved, curved_start(ts[0]), ts, dense=True, **options)
    np.testing.assert_allclose(np.array(solution(ts)), np.array(solution.xs), atol=1e-12)
    anywhere = np.array([[0.0, 1.23456, 0.77], [2.0, 1.9999, 0.001]])
    states = np.array(solution(anywhere))
    assert states.shape == (2, 3, 2)
    error = np.abs(states - curved_solution(anywhere.ravel()).reshape(2, 3, 2)).max()
    assert error < (0.06 if method == "euler" else 1e-3)
    np.testing.assert_array_equal(np.array(solution(0.77)), states[0, 2])


def test_dense_output_without_matrix_products(monkeypatch):
    """GPUs take sums of products instead, as their matrix products may round to ten bits."""
    ts = np.linspace(0, 2, 33)
    expected = odeint(curved, curved_start(), ts)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    xs = odeint(curved, curved_start(), ts).xs
    np.testing.assert_allclose(np.array(xs), np.array(expected.xs), rtol=1e-12)


def test_dense_solution_of_a_tree():
    solution = odeint(
        lambda t, s: {"a": -s["a"], "b": mx.ones(3)},
        {"a": mx.ones((2, 2)), "b": mx.zeros(3)},
        [0.0, 1.0],
        dense=True,
        rtol=1e-6,
        atol=1e-6,
    )
    state = solution([0.25, 0.5])
    assert (state["a"].shape, state["b"].shape) == ((2, 2, 2), (2, 3))
    np.testing.assert_allclose(np.array(state["a"])[:, 0, 0], np.exp([-0.25, -0.5]), atol=1e-5)
    np.testing.assert_allclose(np.array(state["b"])[:, 0], [0.25, 0.5], atol=1e-6)


def test_dense_solution_refuses_times_outside_and_solves_that_kept_nothing():
    solution = odeint(curved, curved_start(), [0.0, 2.0], dense=True)
    for t in (-0.001, [0.5, 2.001], math.nan):
        with pytest.raises(ValueError, match=r"expected times between 0\.0 and 2\.0"):
            solution(t)
    with pytest.raises(ValueError, match="dense=True"):
        odeint(curved, curved_start(), [0.0, 2.0])(1.0)


@pytest.mark.parametrize(
    ("method", "reverse"), [*((name, False) for name in KINDS), ("ab3", True), ("dopri5", True)]
)
def test_event_is_found_where_the_function_crosses_zero(method, reverse):
    """y = 1 / (1 + t^2) is 1/2 at t = 1."""
    ts = [0.0, 0.25, 0.5, 0.75, 1.25, 2.0]
    ts = ts[::-1] if reverse else ts
    step = None if method in ADAPTIVE else 0.01
    solution = odeint(
        curved,
        curved_start(ts[0]),
        ts,
        event=lambda t, z: z[1] - 0.5,
        method=method,
        step_size=step,
        rtol=1e-9,
        atol=1e-9,
    )
    tolerance = 0.03 if method == "euler" else 1e-4 if method in FIXED else 1e-7
    assert solution.status == "event"
    assert solution.ts[-1].item() == pytest.approx(1, abs=tolerance)
    assert solution.xs[-1, 1].item() == pytest.approx(0.5, abs=1e-12)
    before = [t for t in ts if (t > 1 if reverse else t < 1)]
    np.testing.assert_allclose(np.array(solution.ts)[:-1], before)
    assert len(solution.xs) == len(before) + 1


def test_event_sees_time_and_arguments_and_may_not_happen():
    def event(t, x, limit):
        return t - limit

    options = {"event": event, "rtol": 1e-6, "atol": 1e-6}
    stopped = odeint(lambda t, x, c: -x, mx.ones(2), [0.0, 1.0], args=(0.3,), **options)
    assert stopped.ts.tolist() == pytest.approx([0.0, 0.3], abs=1e-6)
    np.testing.assert_allclose(np.array(stopped.xs[-1]), math.exp(-0.3), atol=1e-6)
    missed = odeint(lambda t, x, c: -x, mx.ones(2), [0.0, 1.0], args=(3.0,), **options)
    assert missed.status == "success"
    at_start = odeint(lambda t, x, c: -x, mx.ones(2), [0.0, 1.0], args=(0.0,), **options)
    assert at_start.status == "success"


def test_event_on_an_output_time_is_returned_once():
    ts = [0.0, 0.5, 1.0]
    solution = odeint(
        lambda t, x: mx.ones_like(x), mx.zeros(1), ts, method="euler", event=lambda t, x: x[0] - 0.5
    )
    assert solution.ts.tolist() == [0.0, 0.5]
    assert solution.xs.tolist() == [[0.0], [0.5]]


def test_event_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"event\(t, x\) returned .*expected a scalar"):
        odeint(lambda t, x: -x, mx.ones(2), [0.0, 1.0], event=lambda t, x: x)


@pytest.mark.parametrize("method", KINDS)
def test_progress_goes_from_nothing_to_all(method):
    seen = []
    odeint(lambda t, x: -x, mx.ones(2), [3.0, 2.0, 1.0], method=method, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[0] > 0
    assert seen[-1] == 1.0


@pytest.mark.parametrize("dense", [False, True])
def test_solution_unpacks_to_four(dense):
    solution = odeint(lambda t, x: -x, mx.ones(2), [0.0, 1.0], dense=dense)
    ts, xs, stats, status = solution
    assert ts is solution.ts
    assert xs is solution.xs
    assert stats.nfe == solution.stats.nfe
    assert status == Status.SUCCESS


@pytest.mark.parametrize("throw", [True, False])
def test_a_tiny_step_size_meets_max_steps_at_once(throw):
    options = {"method": "euler", "step_size": 1e-12, "max_steps": 5, "throw": throw}
    if throw:
        with pytest.raises(SolverError, match=r"max_steps=5 steps and is at t=5e-12, dt=1e-12"):
            odeint(lambda t, x: -x, mx.ones(2), [0.0, 1.0], **options)
    else:
        solution = odeint(lambda t, x: -x, mx.ones(2), [0.0, 1.0], **options)
        assert (solution.status, len(solution.xs)) == (Status.MAX_STEPS, 1)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (lambda t, x: x[0] < 0.5, "returned a bool; expected a number that changes its sign"),
        (lambda t, x: mx.sqrt(x[0] - 0.5), r"returned NaN at t="),
    ],
)
def test_events_that_are_no_numbers(event, words):
    with pytest.raises(ValueError, match=words):
        odeint(lambda t, x: -x, mx.ones(1), [0.0, 10.0], event=event)


def test_an_event_may_be_a_python_number():
    solution = odeint(lambda t, x: -x, mx.ones(1), [0.0, 2.0], event=lambda t, x: t.item() - 0.7)
    assert solution.ts[-1].item() == pytest.approx(0.7, abs=1e-5)


@pytest.mark.parametrize(
    "value",
    [lambda s: {"vel": s["v"], "acc": -s["x"]}, lambda s: [s["v"], -s["x"]], lambda s: s["x"]],
)
def test_a_field_returns_the_tree_of_the_state(value):
    with pytest.raises(ValueError, match=r"a tree with the leaves .* expected those of x0"):
        odeint(lambda t, s: value(s), {"x": mx.ones(2), "v": mx.zeros(2)}, [0.0, 1.0])
