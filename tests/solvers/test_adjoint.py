"""odeint_adjoint: inside mx.grad it gives what odeint does, in little memory, or says why not."""

import functools
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from kinds import KINDS
from mlx.utils import tree_flatten

from flowmlx.solvers import (
    ADAPTIVE,
    ADJOINTS,
    odeint,
    odeint_adjoint,
    odeint_value_and_grad,
)


def array64(numbers):
    return mx.array(np.asarray(numbers), dtype=mx.float64)


def assert_close(a, b, **tolerances):
    for (name, x), (other, y) in zip(tree_flatten(a), tree_flatten(b), strict=True):
        assert name == other
        np.testing.assert_allclose(np.array(x), np.array(y), **tolerances)


def swing(t, state, weights):
    """A field on a tree that differentiates inside."""
    x, y = state
    pull = mx.grad(lambda x: mx.sum(mx.log(1 + (x @ weights["w"]) ** 2)))(x)
    return y * weights["b"], t * y - pull


def problem():
    rng = np.random.default_rng(0)
    x0 = array64(rng.normal(size=(3, 2))), array64(rng.normal(size=(3, 2)))
    weights = {"w": array64(rng.normal(size=(2, 2))), "b": array64(rng.normal(size=2))}
    return x0, array64([0.0, 0.3, 0.35, 1.0]), weights


def gradients(solve, **options):
    """Of a loss around two solves, the second from where the first ended."""

    def loss(x0, ts, weights):
        weights = {**weights, "b": mx.exp(weights["b"])}
        half = solve(swing, x0, ts[:3], args=(weights,), **options).xs
        end = solve(swing, (half[0][-1], half[1][-1]), ts[2:], args=(weights,), **options).xs
        return mx.sum(half[0][1] ** 2) + mx.sum(end[0][-1] * end[1][-1]) + mx.sum(end[1][0])

    return mx.value_and_grad(loss, argnums=(0, 1, 2))(*problem())


@pytest.mark.parametrize(
    ("method", "adjoint"),
    [(name, "discrete") for name in KINDS] + [(name, "backsolve") for name in ("rk4", "dopri5")],
)
def test_gradients_are_those_of_odeint(method, adjoint):
    exact = adjoint == "backsolve"
    options = {"step_size": 1 / 40 if exact else 0.07}
    if method in ADAPTIVE:
        options = {"rtol": 1e-8, "atol": 1e-8} if exact else {}
    value, found = gradients(odeint_adjoint, adjoint=adjoint, method=method, **options)
    expected_value, expected = gradients(odeint, method=method, **options)
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-9)
    close = 1e-3 if exact else 1e-7
    assert_close(found, expected, rtol=close, atol=close)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_modules_under_value_and_grad(adjoint):
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    x0 = mx.random.normal((16, 2), key=mx.random.key(1))
    before = dict(tree_flatten(net.parameters()))

    def loss(solve, **options):
        def value(net):
            xs = solve(lambda t, x, net: net(x), x0, [0.0, 1.0], args=(net,), **options).xs
            return mx.mean(xs[-1] ** 2)

        return nn.value_and_grad(net, value)(net)

    value, found = loss(odeint_adjoint, adjoint=adjoint, rtol=1e-6, atol=1e-6)
    expected_value, expected = loss(odeint, rtol=1e-6, atol=1e-6)
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-5)
    assert_close(found, expected, rtol=1e-3, atol=1e-5)
    for name, weight in tree_flatten(net.parameters()):
        assert mx.array_equal(weight, before[name])


def test_without_gradients_it_is_odeint():
    x0, ts, weights = problem()
    solution, same = (s(swing, x0, ts, args=(weights,)) for s in (odeint_adjoint, odeint))
    assert solution.ts.tolist() == same.ts.tolist()
    assert solution.stats == same.stats
    assert solution.status == "success"
    assert_close(solution.xs, same.xs)


def perceptron(t, x, weights):
    for w in weights[:-1]:
        x = mx.tanh(x @ w)
    return x @ weights[-1]


@pytest.mark.parametrize(
    ("adjoint", "method"),
    [("discrete", "midpoint"), ("discrete", "ab3"), ("backsolve", "midpoint")],
)
def test_memory_does_not_grow_with_the_work_inside_steps(adjoint, method):
    """30 midpoint steps of a perceptron of width 256 on 256 points take some 70 MB by odeint."""
    shapes = (2, 256), (256, 256), (256, 2)
    weights = [
        mx.random.normal(s, key=mx.random.key(n)) / s[0] ** 0.5 for n, s in enumerate(shapes)
    ]
    x0 = mx.random.normal((256, 2), key=mx.random.key(3))
    mx.eval(weights, x0)

    def peak(solve, steps, **options):
        def loss(weights):
            options.update(method=method, step_size=1 / steps)
            solution = solve(perceptron, x0, [0.0, 1.0], args=(weights,), **options)
            return mx.mean(solution.xs[-1] ** 2)

        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.grad(loss)(weights))
        return mx.get_peak_memory() - before

    short, long = (peak(odeint_adjoint, steps, adjoint=adjoint) for steps in (10, 30))
    assert long < peak(odeint, 30) / 3
    # Each step more keeps one state of 2 kB, and ab3 a slope, and nothing else.
    assert long - short < 40 * x0.nbytes + 0.5e6


CLOSED = {
    "a variable": lambda w: lambda t, x: w * x,
    "inside a derivative": lambda w: lambda t, x: mx.grad(lambda z: mx.sum(w * z * z / 2))(x),
    "a tree": lambda w: (lambda held: lambda t, x: held["a"][0] * x)({"a": [w]}),
    "another function": lambda w: (lambda f: lambda t, x: f(x))(lambda x: w * x),
    "a partial": lambda w: functools.partial(lambda w, t, x: w * x, w),
    "a default": lambda w: lambda t, x, w=w: w * x,
    "a method": lambda w: Spring(w).slope,
    "an object": lambda w: Spring(w),
    "what an object holds": lambda w: (lambda h: lambda t, x: h.w * x)(SimpleNamespace(w=w)),
    "a slot": lambda w: (lambda h: lambda t, x: h.w * x)(Slotted(w)),
}


class Slotted:
    __slots__ = ("w",)

    def __init__(self, w):
        self.w = w


class Spring:
    def __init__(self, w):
        self.w = w

    def slope(self, t, x):
        return self.w * x

    __call__ = slope


@pytest.mark.parametrize("kind", CLOSED)
def test_a_closure_that_would_lose_its_gradient_is_refused(kind):
    def end(w):
        return odeint_adjoint(CLOSED[kind](w), mx.ones(1), [0.0, 1.0], method="rk4").xs[-1].sum()

    assert end(mx.array(1.0)).item() == pytest.approx(np.e, rel=1e-2)
    with pytest.raises(ValueError, match="field uses"):
        mx.grad(end)(mx.array(1.0))


def test_what_is_closed_over_and_not_differentiated_is_a_constant():
    scale = mx.array(0.5)

    def end(w):
        xs = odeint_adjoint(lambda t, x, w: scale * w * x, mx.ones(1), [0.0, 1.0], args=(w,)).xs
        return xs[-1].sum()

    assert mx.grad(end)(mx.array(1.0)).item() == pytest.approx(0.5 * np.exp(0.5), rel=1e-3)


def test_arguments_that_would_lose_their_gradient_are_refused():
    def end(w, of):
        xs = odeint_adjoint(lambda t, x, a: x, mx.ones(1), [0.0, 1.0], args=(of(w),)).xs
        return xs[-1].sum()

    with pytest.raises(ValueError, match="field uses"):
        mx.grad(end)(mx.array(1.0 + 0j), lambda w: w)
    with pytest.raises(ValueError, match="field uses"):
        mx.grad(end)(mx.array(1.0), lambda w: SimpleNamespace(w=w))


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_modules_in_a_tree_of_arguments(adjoint):
    net = nn.Linear(2, 2)
    x0 = mx.array([[1.0, -0.5]])

    def loss(solve, **options):
        xs = solve(
            lambda t, x, held: held["nets"][0](x) * held["scale"],
            x0,
            [0.0, 1.0],
            args=({"nets": [net], "scale": mx.array(0.5)},),
            rtol=1e-6,
            atol=1e-6,
            **options,
        ).xs
        return mx.sum(xs[-1] ** 2)

    found = nn.value_and_grad(net, lambda: loss(odeint_adjoint, adjoint=adjoint))()[1]
    assert_close(found, nn.value_and_grad(net, lambda: loss(odeint))()[1], rtol=1e-3)
    assert isinstance(net.weight, mx.array)


def forward(function):
    return lambda w: mx.jvp(function, [w], [mx.ones_like(w)])


@pytest.mark.parametrize(
    "derivative", [lambda f: mx.grad(mx.grad(f)), forward, lambda f: forward(mx.grad(f))]
)
def test_what_has_no_derivative_is_refused(derivative):
    def end(w):
        return odeint_adjoint(lambda t, x, w: w * x, mx.ones(1), [0.0, 1.0], args=(w,)).xs[-1].sum()

    with pytest.raises(ValueError, match="write odeint"):
        derivative(end)(mx.array(1.0))


@pytest.mark.parametrize("transform", [mx.grad, mx.compile, mx.vmap])
def test_value_and_grad_inside_of_a_transformation_is_refused(transform):
    def value(w):
        value, *_ = odeint_value_and_grad(
            lambda xs: xs[-1].sum(), lambda t, x, w: w * x, mx.ones(1), [0.0, 1.0], args=(w,)
        )
        return value

    with pytest.raises(ValueError, match="write odeint_adjoint"):
        transform(value)(mx.ones(2) if transform is mx.vmap else mx.array(1.0))


def test_an_adjoint_is_a_name():
    with pytest.raises(ValueError, match="unknown adjoint"):
        odeint_adjoint(lambda t, x: x, mx.ones(1), [0.0, 1.0], adjoint=["discrete"])
