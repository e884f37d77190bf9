"""Step-size control: the factor, the first step, norms, bounds, tolerances."""

import math
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from flowmlx.solvers import Controller, SolverError, Status, odeint, per_sample_max, rms
from flowmlx.solvers.control import DEFAULT_CONTROL, Pace
from flowmlx.solvers.loops import steps_of
from flowmlx.solvers.options import SolveOptions, complete
from flowmlx.solvers.problem import prepare

ELEMENTARY = Controller(p=0.0, i=1.0, d=0.0)


def hump(t, x):
    """A slope that is flat but for one sudden change, at t = 1."""
    return mx.ones_like(x) / (1 + (400 * (t - 1)) ** 2)


def trials(field, x0, ends, control=DEFAULT_CONTROL, tolerance=1e-6, method="dopri5"):
    """Yield all steps of an adaptive solve, accepted and rejected."""
    options = {"method": method, "rtol": tolerance, "atol": tolerance, "control": control}
    return steps_of(prepare(field, x0, ends, (), complete(SolveOptions, options)), x0)


def test_elementary_controller():
    """0.9 error^(-1/q), Hairer, Norsett & Wanner I, II.4 (4.13)."""
    assert ELEMENTARY.factor((0.5, 9.0, 9.0), 5) == pytest.approx(0.9 * 0.5**-0.2)
    assert ELEMENTARY.factor((32.0, 9.0, 9.0), 5) == pytest.approx(0.45)


def test_pid_controller():
    """Digits from Soderlind 2003, (33), with its exponents p + i + d, p + 2 d and d over q."""
    control = Controller(p=0.2, i=0.5, d=0.1)
    expected = 0.9 * 0.3 ** (-0.8 / 5) * 0.2 ** (0.4 / 5) * 0.7 ** (-0.1 / 5)
    assert control.factor((0.3, 0.2, 0.7), 5) == pytest.approx(expected)


def test_a_pace_remembers_the_errors_of_accepted_steps():
    """By the formula, step by step; and for each sample as for one."""
    control = Controller(p=0.2, i=0.5, d=0.1, max_factor=1e9)
    trials, one = (
        [(0.3, True), (0.2, True), (1.7, False), (0.5, True), (0.1, True)],
        Pace(1.0, (1.0, 1.0), 1e9),
    )
    many, past = Pace(np.ones(2), (np.ones(2), np.ones(2)), np.full(2, 1e9)), [1.0, 1.0]
    limit = 1e9
    for error, accepted in trials:
        expected = control.factor((error, past[-1], past[-2]), 5)
        expected = min(expected, limit if accepted else 0.9)
        one = one.after(0.5, error, accepted, control, 5)
        many = many.after(np.full(2, 0.5), np.full(2, error), np.full(2, accepted), control, 5)
        assert one.h == pytest.approx(0.5 * expected)
        np.testing.assert_allclose(many.h, one.h)
        limit = 1e9 if accepted else 1.0
        past += [error] if accepted else []


@pytest.mark.parametrize("control", [ELEMENTARY, DEFAULT_CONTROL])
def test_factor_stays_in_its_bounds(control):
    assert control.factor((0.0, 1.0, 1.0), 5) == 10.0
    for error in (1e30, math.inf, math.nan):
        assert control.factor((error, 1.0, 1.0), 5) == 0.2


errors = st.one_of(st.floats(0, 1e6), st.just(math.nan), st.just(math.inf))


@settings(deadline=None)
@given(st.lists(st.tuples(errors, st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5))
def test_factor_of_many_samples_is_the_factor_of_each(rows):
    control = Controller(p=0.2, i=0.5, d=0.1)
    many = control.factor(tuple(map(np.array, zip(*rows, strict=True))), 5)
    np.testing.assert_allclose(many, [control.factor(row, 5) for row in rows], rtol=1e-12)


@pytest.mark.parametrize("control", [ELEMENTARY, DEFAULT_CONTROL])
def test_no_growth_right_after_a_rejection(control):
    steps = list(trials(hump, mx.zeros(1), (0.0, 2.0), control))
    rejections = 0
    for before, after, later in zip(steps, steps[1:], steps[2:], strict=False):
        size, following = after.end.t - after.start.t, later.end.t - later.start.t
        if before.accepted:
            continue
        rejections += 1
        assert after.start is before.start
        assert size <= 0.9 * (before.end.t - before.start.t) * (1 + 1e-9)
        if after.accepted and later.end.t != 2.0:
            assert following <= size * (1 + 1e-9)
    assert rejections >= 2


def test_rejected_steps_change_nothing_but_the_step():
    for step, after in pairwise(trials(hump, mx.zeros(1), (0.0, 2.0))):
        assert after.start is (step.end if step.accepted else step.start)


def test_a_step_that_is_not_finite_shrinks_to_a_fifth():
    def field(t, x):
        return mx.where(t > 0.5, mx.array(math.nan), mx.ones_like(x))

    walk = trials(field, mx.zeros(1), (0.0, 1.0), Controller(first_step=0.8))
    first, second = next(walk), next(walk)
    assert not first.accepted
    assert second.end.t == pytest.approx(0.16)


@pytest.mark.parametrize(
    ("field", "start"),
    [
        (lambda t, x: -3 * x, [1.0, 2.0]),
        (lambda t, x: t / (1 + x * x), [0.3, -4.0]),
        (lambda t, x: 50 * x * (1 - x), [1e-3, 0.5]),
    ],
)
def test_first_step_is_hairers(field, start):
    """SciPy uses the same rule, for the same orders."""
    expected = solve_ivp(field, (0, 5), start, "RK45", rtol=1e-5, atol=1e-7)
    x0 = mx.array(start, dtype=mx.float64)
    ours = odeint(field, x0, [0.0, 5.0], rtol=1e-5, atol=1e-7, dense=True)
    assert ours.dense.steps[0].end.t == pytest.approx(expected.t[1], rel=1e-6)


def test_first_step_stays_inside_short_intervals():
    for ts in ([0.0, 1e-5], [3.0, 2.9999]):
        stats = odeint(lambda t, x: -x, mx.ones(2), ts).stats
        assert (stats.nfe, stats.accepted) == (8, 1)


def test_bounds_on_the_step():
    x0 = mx.ones(1)
    free = odeint(lambda t, x: -x, x0, [0.0, 4.0]).stats
    bound = odeint(lambda t, x: -x, x0, [0.0, 4.0], control=Controller(dtmax=0.1)).stats
    assert free.largest_step > 0.5
    assert 0.09 < bound.largest_step <= 0.101
    given = odeint(lambda t, x: -x, x0, [4.0, 0.0], control=Controller(first_step=0.03), dense=True)
    assert given.dense.steps[0].end.t == pytest.approx(3.97)
    assert given.stats.nfe == 1 + 6 * (given.stats.accepted + given.stats.rejected)


def test_the_last_step_is_not_tiny():
    control = Controller(dtmax=0.1, first_step=0.1)
    stats = odeint(lambda t, x: 0 * x, mx.ones(1), [0.0, 1.0005], control=control).stats
    assert stats.accepted == 10
    assert stats.smallest_step > 0.0999


def test_dtmin_stops_the_solve():
    control = Controller(dtmin=0.05, first_step=0.2)
    with pytest.raises(SolverError, match=r"needs a step below dt=0\.05, .*dtmin") as caught:
        odeint(hump, mx.zeros(1), [0.0, 2.0], rtol=1e-8, atol=1e-8, control=control)
    assert caught.value.status is Status.STAGNATION
    # Without a rejection there, steps of dtmin go on.
    stats = odeint(lambda t, x: -x, mx.ones(1), [0.0, 1.0], control=Controller(dtmin=0.05)).stats
    assert stats.rejected == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"p": -1.0, "i": 0.5}, "p + i + d is -0.5"),
        ({"safety": 0.0}, "safety is 0.0"),
        ({"safety": 1.5}, "safety is 1.5"),
        ({"min_factor": 1.0}, "min_factor is 1.0"),
        ({"max_factor": 1.0}, "max_factor is 1.0"),
        ({"dtmin": -1.0}, "dtmin is -1.0"),
        ({"dtmin": 0.1, "dtmax": 0.1}, "dtmax is 0.1; expected a number above dtmin=0.1"),
        ({"first_step": 0.0}, "first_step is 0.0"),
        ({"i": math.nan}, "p + i + d is nan"),
    ],
)
def test_bad_settings(options, words):
    with pytest.raises(ValueError, match="Controller") as caught:
        Controller(**options)
    assert words in str(caught.value)


def test_norms():
    ratios = mx.array([[[3.0, 4.0]], [[0.0, 0.0]]])
    assert rms(ratios).item() == pytest.approx(2.5)
    assert per_sample_max(ratios).item() == pytest.approx(math.sqrt(12.5))


def test_per_sample_max_does_not_hide_a_sample_in_its_batch():
    """One sample in a thousand moves; the mean over all of them hardly sees its error."""
    rate = mx.concatenate([mx.array([3.0]), mx.zeros(999)])[:, None]
    errors = {}
    for norm in (rms, per_sample_max):
        xs = odeint(
            lambda t, x: -2 * rate * t * x * x, mx.ones((1000, 1)), [0.0, 2.0], norm=norm
        ).xs
        errors[norm] = abs(xs[-1, 0].item() - 1 / 13)
    assert errors[rms] > 1e-3
    assert errors[per_sample_max] < 2e-4


def test_tolerances_per_leaf():
    """A leaf with a loose tolerance leaves the steps to the other."""

    def field(t, state):
        return {"smooth": -state["smooth"], "wild": 9 * mx.cos(9 * t) * mx.ones_like(state["wild"])}

    x0 = {"smooth": mx.ones(3), "wild": mx.zeros((2, 2))}
    loose = {"smooth": 1e-6, "wild": 1e6}
    only_smooth = odeint(lambda t, x: -x, mx.ones(3), [0.0, 2.0], rtol=1e-6, atol=1e-6).stats
    stats = odeint(field, x0, [0.0, 2.0], rtol=loose, atol=loose).stats
    assert abs(stats.accepted - only_smooth.accepted) <= 1
    tight = odeint(field, x0, [0.0, 2.0], rtol=1e-6, atol={"smooth": 1e-6, "wild": 1e-6}).stats
    assert tight.accepted > 3 * stats.accepted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rtol": {"a": 1e-3}}, "rtol holds 1 numbers; expected one, or one per leaf: 2"),
        ({"atol": {"a": 1e-3, "b": -1.0}}, "atol is -1.0"),
        ({"rtol": {"a": 0.0, "b": 1.0}, "atol": 0.0}, "rtol and atol are both 0"),
    ],
)
def test_bad_tolerances_per_leaf(options, words):
    with pytest.raises(ValueError, match="expected") as caught:
        odeint(lambda t, x: x, {"a": mx.ones(2), "b": mx.ones(1)}, [0.0, 1.0], **options)
    assert words in str(caught.value)


def test_zero_absolute_tolerance_with_states_at_zero():
    solution = odeint(lambda t, x: -x, mx.array([0.0, 1.0]), [0.0, 1.0], rtol=1e-5, atol=0.0)
    np.testing.assert_allclose(np.array(solution.xs[-1]), [0, math.exp(-1)], atol=1e-5)


@pytest.mark.parametrize(
    "value", [None, 1.0, np.ones(1), mx.ones(2), mx.array(1j)], ids=lambda v: type(v).__name__
)
def test_a_norm_gives_one_number(value):
    with pytest.raises((TypeError, ValueError), match=r"norm\(ratios\) returned .*; expected"):
        odeint(lambda t, x: x, mx.ones(2), [0.0, 1.0], norm=lambda ratios: value)
