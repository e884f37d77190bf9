"""Gradients through solves: against closed forms, finite differences, and each other."""

import math
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from kinds import KINDS
from mlx.utils import tree_flatten

from flowmlx.solvers import (
    ADAPTIVE,
    ADJOINTS,
    SDE_METHODS,
    BrownianMotion,
    SolverError,
    odeint,
    odeint_per_sample,
    odeint_value_and_grad,
    sdeint,
)


def array64(numbers):
    return mx.array(np.asarray(numbers), dtype=mx.float64)


def by_mlx(loss, field, x0, ts, *, args=(), **options):
    """The gradients of `odeint_value_and_grad` by `mx.grad` through `odeint`."""

    def value(x0, ts, args):
        return loss(odeint(field, x0, ts, args=args, **options).xs)

    return mx.value_and_grad(value, argnums=(0, 1, 2))(x0, ts, args)


def by_adjoint(adjoint):
    def way(*arguments, **options):
        value, gradients, _ = odeint_value_and_grad(*arguments, adjoint=adjoint, **options)
        return value, gradients

    return way


WAYS = {"mx.grad": by_mlx, **{name: by_adjoint(name) for name in ADJOINTS}}


def assert_close(a, b, **tolerances):
    for (name, x), (other, y) in zip(tree_flatten(a), tree_flatten(b), strict=True):
        assert name == other
        np.testing.assert_allclose(np.array(x), np.array(y), **tolerances)


# x' = a x from x0 at t0: x(t) = x0 exp(a (t - t0)).
@pytest.mark.parametrize(
    ("way", "method", "reverse"),
    [(way, method, False) for way in WAYS for method in ("rk4", "ab3", "dopri5")]
    + [("mx.grad", "bosh3", True), ("discrete", "abm2", True), ("backsolve", "euler", True)],
)
def test_closed_form_of_a_linear_equation(way, method, reverse):
    a, x0, t0, t1, t2 = -0.7, 1.3, 0.2, 0.9, 1.7
    if reverse:
        t0, t2 = t2, t0
    value, gradients = WAYS[way](
        lambda xs: mx.sum(xs[1] ** 2 + 3 * xs[2] + 5 * xs[0]),
        lambda t, x, a: a * x,
        array64([x0]),
        array64([t0, t1, t2]),
        args=(array64(a),),
        method=method,
        **({"rtol": 1e-8, "atol": 1e-8} if method in ADAPTIVE else {"step_size": 1 / 200}),
    )
    x1, x2 = (x0 * math.exp(a * (t - t0)) for t in (t1, t2))
    in_times = [-2 * x1 * a * x1 - 3 * a * x2, 2 * x1 * a * x1, 3 * a * x2]
    accuracy = 1e-2 if method == "euler" else 1e-5
    assert value.item() == pytest.approx(x1**2 + 3 * x2 + 5 * x0, rel=accuracy)
    in_x0, in_ts, (in_a,) = gradients
    assert in_x0.item() == pytest.approx((2 * x1 * x1 + 3 * x2) / x0 + 5, rel=accuracy)
    assert in_a.item() == pytest.approx(2 * x1 * (t1 - t0) * x1 + 3 * (t2 - t0) * x2, rel=accuracy)
    np.testing.assert_allclose(np.array(in_ts), in_times, rtol=accuracy)


class Oscillator(NamedTuple):
    """A state of two leaves of different shapes."""

    place: mx.array
    speed: mx.array


def swing(t, state, weights):
    pull = mx.tanh(state.place @ weights["w"]) + weights["b"] * t
    return Oscillator(mx.broadcast_to(state.speed, (3, 2)), -mx.sum(pull, axis=0)[None] * 0.5)


def swing_problem():
    rng = np.random.default_rng(0)
    x0 = Oscillator(array64(rng.normal(size=(3, 2))), array64(rng.normal(size=(1, 2))))
    weights = {"w": array64(rng.normal(size=(2, 2))), "b": array64(rng.normal(size=2))}

    def loss(xs):
        return mx.sum(xs.place[-1] ** 2) + mx.sum(xs.speed[1:3]) + mx.sum(xs.place[0])

    return loss, x0, weights


@pytest.mark.parametrize(
    ("method", "ts"),
    [(name, [0.0, 0.3, 0.35, 1.0]) for name in KINDS]
    + [(name, [1.0, 0.4, 0.0]) for name in ("ab3", "dopri5")],
)
def test_discrete_adjoint_is_the_gradient_of_mlx(method, ts):
    loss, x0, weights = swing_problem()
    options = {} if method in ADAPTIVE else {"step_size": 0.07}
    arguments = loss, swing, x0, array64(ts)
    expected_value, expected = by_mlx(*arguments, args=(weights,), method=method, **options)
    value, gradients, _ = odeint_value_and_grad(
        *arguments, args=(weights,), method=method, **options
    )
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-12)
    assert_close(tuple(gradients), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["euler", "rk4", "ab3", "dopri5"])
def test_backsolve_comes_as_close_as_its_steps_allow(method):
    loss, x0, weights = swing_problem()
    options = {"rtol": 1e-8, "atol": 1e-8} if method in ADAPTIVE else {"step_size": 1 / 100}
    arguments = loss, swing, x0, array64([0.0, 0.3, 0.35, 1.0])
    _, expected = by_mlx(*arguments, args=(weights,), method=method, **options)
    _, gradients, _ = odeint_value_and_grad(
        *arguments, args=(weights,), adjoint="backsolve", method=method, **options
    )
    accuracy = 4e-2 if method == "euler" else 1e-4
    assert_close(tuple(gradients), expected, rtol=accuracy, atol=accuracy)


@pytest.mark.parametrize(
    ("way", "method"),
    [("mx.grad", "ab3"), ("mx.grad", "dopri5")]
    + [("discrete", name) for name in ("rk4", "ab2", "ab3", "abm2", "dopri5")],
)
def test_gradients_are_finite_differences(way, method):
    """Of the numbers that the solve computes, however coarse its steps."""
    loss, x0, weights = swing_problem()
    options = {"method": method, "grid": [0.0, 0.1, 0.3, 0.7, 1.0]}
    ts, eps = array64([0.0, 0.5, 0.8, 1.0]), 1e-6
    _, (in_x0, _, (in_weights,)) = WAYS[way](loss, swing, x0, ts, args=(weights,), **options)

    def change(x0_step, w_step):
        values = [
            loss(
                odeint(
                    swing,
                    Oscillator(x0.place + sign * x0_step, x0.speed),
                    ts,
                    args=({"w": weights["w"] + sign * w_step, "b": weights["b"]},),
                    **options,
                ).xs
            ).item()
            for sign in (1, -1)
        ]
        return (values[0] - values[1]) / (2 * eps)

    for k in np.ndindex(3, 2):
        step = np.zeros((3, 2))
        step[k] = eps
        assert in_x0.place[k].item() == pytest.approx(change(array64(step), 0), rel=1e-6)
    for k in np.ndindex(2, 2):
        step = np.zeros((2, 2))
        step[k] = eps
        assert in_weights["w"][k].item() == pytest.approx(change(0, array64(step)), rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_tolerances_per_leaf(way):
    loss, x0, weights = swing_problem()
    tolerances = Oscillator(1e-8, 1e-9)
    _, gradients = WAYS[way](
        loss, swing, x0, array64([0.0, 0.5, 1.0]), args=(weights,), rtol=tolerances, atol=tolerances
    )
    _, expected = by_mlx(loss, swing, x0, array64([0.0, 0.5, 1.0]), args=(weights,), rtol=1e-10)
    assert_close(tuple(gradients), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_modules_are_arguments_and_come_back_as_they_were(adjoint):
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    net.layers[0].freeze(keys=["bias"])
    before = dict(tree_flatten(net.parameters()))
    x0 = mx.random.normal((16, 2), key=mx.random.key(1))
    value, gradients, _ = odeint_value_and_grad(
        lambda xs: mx.mean(xs[-1] ** 2),
        lambda t, x, net, rate, label: rate * net(x),
        x0,
        [0.0, 1.0],
        args=(net, 0.5, "a label"),
        adjoint=adjoint,
        rtol=1e-6,
        atol=1e-6,
    )

    def plain(net):
        solution = odeint(lambda t, x: 0.5 * net(x), x0, [0.0, 1.0], rtol=1e-6, atol=1e-6)
        return mx.mean(solution.xs[-1] ** 2)

    expected_value, expected = nn.value_and_grad(net, plain)(net)
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-5)
    assert_close(gradients.args[0], expected, rtol=1e-3, atol=1e-5)
    assert "bias" not in gradients.args[0]["layers"][0]
    assert gradients.args[1:] == (None, None)
    assert gradients.ts is None
    for name, weight in tree_flatten(net.parameters()):
        assert mx.array_equal(weight, before[name])


def test_module_comes_back_after_an_error():
    net = nn.Linear(2, 2)
    calls = []

    def fails_on_the_way_back(t, x, net):
        calls.append(t)
        if len(calls) > 5:
            raise RuntimeError("no more")
        return net(x)

    before = net.weight + 0
    with pytest.raises(RuntimeError, match="no more"):
        odeint_value_and_grad(
            lambda xs: mx.sum(xs[-1]),
            fails_on_the_way_back,
            mx.ones((4, 2)),
            [0.0, 1.0],
            args=(net,),
            method="euler",
            step_size=0.2,
        )
    assert mx.array_equal(net.weight, before)


def perceptron(width):
    keys = mx.random.split(mx.random.key(0), 3)
    shapes = (2, width), (width, width), (width, 2)
    weights = [
        mx.random.normal(shape, key=key) / shape[0] ** 0.5
        for shape, key in zip(shapes, keys, strict=True)
    ]
    mx.eval(weights)

    def field(t, x, weights):
        for w in weights[:-1]:
            x = mx.tanh(x @ w)
        return x @ weights[-1]

    return field, weights


def peak(run):
    """Bytes that `run` takes beyond what is there before."""
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(run())
    return mx.get_peak_memory() - before


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_memory_does_not_grow_with_the_work_inside_steps(adjoint):
    """30 midpoint steps of a perceptron of width 256 on 256 points, by mx.grad some 70 MB.

    The states alone are 60 kB.
    """
    field, weights = perceptron(256)
    x0 = mx.random.normal((256, 2), key=mx.random.key(1))

    def solve(way, steps):
        arguments = (lambda xs: mx.mean(xs[-1] ** 2), field, x0, mx.array([0.0, 1.0]))
        options = {"args": (weights,), "method": "midpoint", "step_size": 1 / steps}
        return peak(lambda: WAYS[way](*arguments, **options))

    plain, short, long = solve("mx.grad", 30), solve(adjoint, 10), solve(adjoint, 30)
    assert long < plain / 3
    # Each step more keeps one state of 2 kB and nothing else.
    assert long - short < 20 * x0.nbytes + 0.5e6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adjoint": "reverse"}, "unknown adjoint 'reverse'; known: discrete, backsolve"),
        ({"method": "rk5"}, "unknown method"),
        ({"step_size": 0.1, "grid": [0.0, 1.0]}, "expected one of them"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        odeint_value_and_grad(mx.sum, lambda t, x: x, mx.ones(2), [0.0, 1.0], **options)


def test_loss_must_be_a_scalar():
    with pytest.raises(ValueError, match=r"loss\(xs\) returned shape \(2, 3\); expected a scalar"):
        odeint_value_and_grad(lambda xs: xs, lambda t, x: x, mx.ones(3), [0.0, 1.0])


def test_failures_are_those_of_the_solve():
    with pytest.raises(SolverError, match="blows up"):
        odeint_value_and_grad(mx.sum, lambda t, x: x * x, mx.ones(1), [0.0, 2.0])


def test_steps_of_each_sample_can_be_differentiated():
    rates, x0 = array64([0.3, -2.0, 1.0]), array64([1.0, 2.0, -1.0])

    def loss(x0, rates):
        solution = odeint_per_sample(
            lambda t, x, rates: rates * x, x0, [0.0, 0.5, 1.0], args=(rates,), rtol=1e-9, atol=1e-9
        )
        return mx.sum(solution.xs[-1])

    in_x0, in_rates = mx.grad(loss, argnums=(0, 1))(x0, rates)
    growth = np.exp(np.array(rates))
    np.testing.assert_allclose(np.array(in_x0), growth, rtol=1e-6)
    np.testing.assert_allclose(np.array(in_rates), np.array(x0) * growth, rtol=1e-6)


@pytest.mark.parametrize("method", SDE_METHODS)
def test_noisy_solves_can_be_differentiated(method, key):
    """dx = a x dt + s dW from x0: the mean is x0 exp(a t), and s multiplies the noise."""
    x0, a, s = array64([1.0, -2.0]), array64(-0.5), array64(0.3)

    def end(x0, a, s):
        solution = sdeint(
            lambda t, x, a, s: a * x,
            lambda t, x, a, s: s,
            x0,
            [0.0, 1.0],
            key=key,
            args=(a, s),
            method=method,
            step_size=1 / 256,
        )
        return mx.sum(solution.xs[-1])

    in_x0, in_s = mx.grad(end, argnums=(0, 2))(x0, a, s)
    np.testing.assert_allclose(np.array(in_x0), np.exp(-0.5), rtol=2e-3)
    noise = (end(x0, a, s) - end(x0, a, 0 * s)) / s
    assert in_s.item() == pytest.approx(noise.item(), rel=1e-9)
    assert abs(noise.item()) > 0.01 * abs(mx.sum(BrownianMotion((2,), 1.0, key=key)(0, 1).w).item())
