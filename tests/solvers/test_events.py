"""Events: where they are found, what is returned, and gradients through their time."""

import math

import mlx.core as mx
import numpy as np
import pytest
from kinds import KINDS

from flowmlx.solvers import ADAPTIVE, odeint


def fall(method, dtype, inner=False, **options):
    """Time and place at which (height, way) from (h0, 0) with speeds (-w height, w) meets `level`.

    At t = log(h0 / level) / w, after the way log(h0 / level).
    """

    def field(t, x, w):
        height = mx.grad(lambda z: z**2 / 2)(x[0]) if inner else x[0]
        return mx.stack([-w * height, mx.broadcast_to(w, ())])

    def end(h0, w, level, t0):
        solution = odeint(
            field,
            mx.stack([h0, mx.zeros_like(h0)]),
            mx.concatenate([t0[None], mx.array([10.0], dtype=dtype)]),
            args=(w,),
            event=lambda t, x, w: x[0] - level,  # in `level` as well, which is closed over
            method=method,
            **options,
        )
        assert solution.status == "event"
        return solution.ts[-1], solution.xs[-1, 1], solution.xs[-1, 0]

    return end


@pytest.mark.parametrize(
    ("method", "dtype", "inner"),
    [(name, mx.float64, True) for name in ("rk4", "ab3", "dopri5")]
    + [(name, mx.float32, False) for name in ("abm2", "bosh3", "dopri5")],
)
def test_gradients_go_through_the_time_of_an_event(method, dtype, inner):
    step = {} if method in ADAPTIVE else {"step_size": 0.1 if method == "rk4" else 0.03}
    tight = {"rtol": 1e-5, "atol": 1e-5} if dtype == mx.float32 else {"rtol": 1e-9, "atol": 1e-9}
    end = fall(method, dtype, inner, **step, **tight)
    h0, w, level, t0 = (mx.array(u, dtype=dtype) for u in (2.0, 0.5, 0.7, 0.25))
    way = math.log(2 / 0.7)
    expected = [
        (way / 0.5 + 0.25, [1 / (2 * 0.5), -way / 0.25, -1 / (0.7 * 0.5), 1]),
        (way, [1 / 2, 0, -1 / 0.7, 0]),
        (0.7, [0, 0, 1, 0]),  # the height of an event is its level, whatever else changes
    ]
    accuracy = 2e-3 if dtype == mx.float32 else 1e-4
    for n, (value, gradients) in enumerate(expected):
        found, slopes = mx.value_and_grad(lambda *at, n=n: end(*at)[n], argnums=(0, 1, 2, 3))(
            h0, w, level, t0
        )
        assert found.dtype == dtype
        assert found.item() == pytest.approx(value, rel=accuracy)
        np.testing.assert_allclose([s.item() for s in slopes], gradients, atol=accuracy * 4)


def test_second_and_forward_derivatives_of_an_event():
    """t = log(h0 / level) / w, and the way until then is log(h0 / level)."""
    h0, w, level, t0 = (mx.array(u, dtype=mx.float64) for u in (2.0, 0.5, 0.7, 0.0))
    end, log = fall("dopri5", mx.float64, True, rtol=1e-9, atol=1e-9), math.log(2 / 0.7)

    def time(w, h0):
        return end(h0, w, level, t0)[0]

    def way(w, h0):
        return end(h0, w, level, t0)[1]

    def second(function, *of):
        a, b = of
        return mx.grad(lambda *at: mx.grad(function, a)(*at), b)(w, h0).item()

    assert second(time, 0, 0) == pytest.approx(2 * log / 0.5**3, rel=1e-5)
    assert second(time, 0, 1) == pytest.approx(-1 / (2 * 0.25), rel=1e-5)
    assert second(time, 1, 1) == pytest.approx(-1 / (4 * 0.5), rel=1e-5)
    assert second(way, 0, 0) == pytest.approx(0, abs=1e-5)
    assert second(way, 1, 1) == pytest.approx(-1 / 4, rel=1e-5)
    (found,) = mx.jvp(time, [w, h0], [mx.ones_like(w), mx.zeros_like(h0)])[1]
    assert found.item() == pytest.approx(-log / 0.25, rel=1e-5)


def test_gradients_of_outputs_before_an_event():
    ts = mx.array([0.0, 0.25, 0.5, 5.0])

    def value(w, ts):
        solution = odeint(
            lambda t, x: -w * x, mx.ones(1), ts, event=lambda t, x: x[0] - 0.3, rtol=1e-6, atol=1e-6
        )
        assert len(solution.ts) == 4  # the third output, then the event at 1.2
        return mx.sum(solution.xs[:3]) + solution.ts[1]

    in_w, in_ts = mx.grad(value, argnums=(0, 1))(mx.array(1.0), ts)
    slopes = -np.exp([-0.25, -0.5])
    assert in_w.item() == pytest.approx(slopes @ [0.25, 0.5], rel=1e-4)
    np.testing.assert_allclose(
        np.array(in_ts), [-sum(slopes), slopes[0] + 1, slopes[1], 0], rtol=1e-4
    )


@pytest.mark.parametrize(
    "event", [lambda t, x: x[0].item() - 0.5, lambda t, x: mx.sign(x[0] - 0.5)]
)
def test_an_event_without_a_slope_has_no_gradient(event):
    def end(x0):
        return odeint(lambda t, x: -x, x0, [0.0, 2.0], event=event).xs[-1].sum()

    assert end(mx.ones(1)).item() == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(ValueError, match=r"event\(t, x\) does not change with time at t=0\.693"):
        mx.grad(end)(mx.ones(1))


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_an_event_without_samples(method):
    solution = odeint(
        lambda t, x: x,
        mx.zeros((0, 2)),
        [0.0, 1.0],
        event=lambda t, x: t - 0.3,
        method=method,
        dense=True,
    )
    assert solution.ts.tolist() == pytest.approx([0, 0.3])
    assert solution([0.1, 0.2, 0.25]).shape == (3, 0, 2)
    assert solution(mx.zeros((0, 4))).shape == (0, 4, 0, 2)


def test_an_event_is_a_real_number():
    with pytest.raises(TypeError, match=r"event\(t, x\) returned complex numbers"):
        odeint(lambda t, x: x, mx.ones(1), [0.0, 1.0], event=lambda t, x: (x + 1j)[0])


# x = t: an event at `level`, with outputs that single precision cannot tell from it.
@pytest.mark.parametrize(
    ("method", "level"),
    [("rk4", level) for level in (0.5, np.nextafter(0.5, 1), np.nextafter(0.5, 0), 0.5 + 1e-9, 1.0)]
    + [(method, np.nextafter(0.5, 1)) for method in ("euler", "dopri5", "bosh3")],
)
def test_the_times_up_to_an_event_can_be_handed_back(method, level):
    start = mx.zeros(1)
    ts = [0.0, 0.25, 0.5, 1.0]

    def field(t, x):
        return mx.ones_like(x)

    solution = odeint(field, start, ts, method=method, event=lambda t, x: x[0] - np.float32(level))
    again = odeint(field, start, solution.ts, method=method)
    assert again.ts.tolist() == solution.ts.tolist()
    np.testing.assert_allclose(np.array(again.xs), np.array(solution.xs), atol=1e-6)
    assert solution.ts[-1].item() == pytest.approx(level, rel=1e-6)


@pytest.mark.parametrize("t0", [0.0, 1.0, -1.0, 1e6])
def test_an_event_right_after_the_start(t0):
    """It has a time of its own, found in a bounded number of halvings."""
    calls = []

    def event(t, x):
        calls.append(t)
        return mx.where(t > t0, 1.0, -1.0)

    solution = odeint(lambda t, x: x, mx.ones(1), [t0, t0 + 1], method="euler", event=event)
    first, last = solution.ts.tolist()
    assert first == t0 < last <= t0 + max(abs(t0), 1) * 2e-7
    assert len(calls) < 80


@pytest.mark.parametrize(
    ("method", "sign"), [*((name, 1) for name in KINDS), ("ab3", -1), ("dopri5", -1)]
)
def test_the_dense_solution_ends_at_the_event(method, sign):
    """It ends where the solve did, not where the step in which it ended would have."""
    solution = odeint(
        lambda t, x: -sign * x,
        mx.ones(1),
        [0.0, 2.0 * sign],
        method=method,
        **({} if method in ADAPTIVE else {"step_size": 0.125}),
        event=lambda t, x: x[0] - 0.5,
        dense=True,
    )
    end = solution.ts[-1]
    assert mx.array_equal(solution(end), solution.xs[-1])
    assert solution(end.item() / 2).item() == pytest.approx(math.sqrt(0.5), rel=0.05)
    for beyond in (0.9 * sign, end.item() + 1e-4 * sign, -1e-4 * sign):
        with pytest.raises(ValueError, match="expected times between"):
            solution(beyond)


@pytest.mark.parametrize("method", KINDS)
def test_the_dense_solution_ends_where_numbers_do(method):
    """x' = x^2 from 1 blows up at t = 1."""
    solution = odeint(
        lambda t, x: mx.where(t > 0.6, math.nan, x * x),
        mx.ones(1),
        [0.0, 0.5, 4.0],
        method=method,
        **({} if method in ADAPTIVE else {"step_size": 0.125}),
        dense=True,
        throw=False,
    )
    assert solution.status != "success"
    assert solution.ts.tolist() == [0.0, 0.5]
    assert solution(0.25).item() == pytest.approx(1 / 0.75, rel=0.2)
    last = solution.dense.end
    assert 0.25 < last < 0.75
    assert math.isfinite(solution(last).item())
    for beyond in (3.9, last + 1e-3):
        with pytest.raises(ValueError, match="expected times between"):
            solution(beyond)


def test_a_dense_solution_without_steps_knows_its_start():
    solution = odeint(lambda t, x: x * math.nan, mx.ones(2), [0.0, 1.0], dense=True, throw=False)
    assert solution(0.0).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="expected times between"):
        solution(0.5)
