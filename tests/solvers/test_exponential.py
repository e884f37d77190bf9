"""DPM-Solver++(2M) and UniPC(2): exact cases, orders, the paper's own form, ends, refusals."""

import math

import mlx.core as mx
import numpy as np
import pytest

from flowmlx.solvers import (
    Coefficients,
    Exponential,
    SolverError,
    odeint,
    odeint_adjoint,
    odeint_value_and_grad,
)
from flowmlx.solvers.exponential import Node, correct, predict

# Paths by name: t -> coefficients.
PATHS = {
    "linear": lambda t: Coefficients(t, 1 - t, 1.0, -1.0),
    "trigonometric": lambda t: Coefficients(
        math.sin(math.pi * t / 2),
        math.cos(math.pi * t / 2) if t < 1 else 0.0,
        math.pi / 2 * math.cos(math.pi * t / 2),
        -math.pi / 2 * math.sin(math.pi * t / 2),
    ),
    "shrinking": lambda t: Coefficients(t, 1 - 0.9 * t, 1.0, -0.9),  # beta(1) = 0.1
}
METHODS = {"dpmpp_2m": False, "unipc_2": True}


def method_of(name, path):
    return Exponential(PATHS[path], corrector=METHODS[name])


def field_of(path, data):
    """The field whose guess of the data is data(t, x)."""

    def field(t, x):
        c = PATHS[path](t.item())
        d = data(t, x)
        return c.d_alpha * d + c.d_beta / c.beta * (x - c.alpha * d)

    return field


def array64(numbers):
    return mx.array(np.asarray(numbers), dtype=mx.float64)


X0 = array64([[0.3, -1.2], [2.0, 0.1], [-0.5, 0.7]])


def test_names():
    assert {name: Exponential(PATHS["linear"], c).name for name, c in METHODS.items()} == {
        name: name for name in METHODS
    }


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("path", PATHS)
def test_one_data_point_is_reached_exactly_in_any_steps(name, path):
    """D is that point, and x = alpha D + beta x0 all along; both ends are included."""
    point = array64([5.0, -3.0])
    field = field_of(path, lambda t, x: point + 0 * x)
    c = PATHS[path](1.0)
    for grid in ([0.0, 1.0], [0.0, 0.01, 0.4, 1.0], np.linspace(0, 1, 9)):
        xs = odeint(field, X0, [0.0, 1.0], method=method_of(name, path), grid=grid).xs
        assert mx.allclose(xs[-1], c.alpha * point + c.beta * X0, rtol=1e-12, atol=1e-12)
        assert mx.array_equal(xs[0], X0)


def test_one_step_along_the_linear_path_is_euler():
    field = field_of("linear", lambda t, x: mx.tanh(x + t))
    one = odeint(field, X0, [0.2, 0.5], method=method_of("dpmpp_2m", "linear")).xs[-1]
    assert mx.allclose(one, odeint(field, X0, [0.2, 0.5], method="euler").xs[-1], rtol=1e-12)


@pytest.mark.parametrize(("name", "order"), [("dpmpp_2m", 2), ("unipc_2", 3)])
@pytest.mark.parametrize("path", PATHS)
def test_convergence_order_inside(name, order, path):
    """On steps that are equal in t and so are not in l."""
    field = field_of(path, lambda t, x: mx.tanh(x[:, ::-1] * (1 + t)) + t * t)
    ts = [0.3, 0.8]
    exact = odeint(field, X0, ts, rtol=1e-12, atol=1e-12).xs[-1]
    counts, errors = [16, 32, 64], []
    for n in counts:
        grid = np.linspace(*ts, n + 1)
        x = odeint(field, X0, ts, method=method_of(name, path), grid=grid).xs[-1]
        errors.append(mx.max(mx.abs(x - exact)).item())
    measured = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert order - 0.3 < measured < order + 0.5


@pytest.mark.parametrize("path", PATHS)
def test_corrector_is_exact_for_a_parabola_in_l(path):
    """D depends on time alone, so what the state was predicted to be does not matter."""

    def data(t, x):
        level = PATHS[path](t.item()).level
        return 0.3 + level - 0.5 * level**2 + 0 * x

    field, ts = field_of(path, data), [0.2, 0.8]
    exact = odeint(field, X0, [0.2, 0.35, 0.8], rtol=1e-12, atol=1e-12).xs
    # The first step has no value before it; let it be tiny.
    grid = [0.2, 0.2 + 1e-5, 0.35, 0.5, 0.8]
    x = odeint(field, X0, ts, method=method_of("unipc_2", path), grid=grid).xs[-1]
    assert mx.allclose(x, exact[-1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("b", [lambda h: -h, lambda h: math.expm1(-h)])
def test_steps_are_those_of_the_paper(b):
    """Zhao et al. 2023, in its own variables, for both of its B(h)."""
    rng = np.random.default_rng(0)
    x, m_before, m, m_next = (array64(rng.normal(size=3)) for _ in range(4))
    nodes = [
        Node(PATHS["trigonometric"](t).level, PATHS["trigonometric"](t), data)
        for t, data in ((0.2, m_before), (0.35, m), (0.6, m_next))
    ]
    before, here, there = nodes
    h = there.level - here.level
    hh = -h
    r = (before.level - here.level) / h
    first = math.expm1(hh)
    second = first / hh - 1
    third = second / hh - 0.5
    matrix = np.array([[1.0, 1.0], [r, 1.0]])
    rho = np.linalg.solve(matrix, [second / b(h), 2 * third / b(h)])
    linear = there.c.beta / here.c.beta * x - there.c.alpha * first * m
    change = rho[0] * (m_before - m) / r + rho[1] * (m_next - m)
    expected = linear - there.c.alpha * b(h) * change
    assert mx.allclose(correct(x, there, here, before), expected, rtol=1e-9)
    # The predictor, with B(h) = exp(-h) - 1 and the weight 1/2.
    expected = linear - there.c.alpha * first * 0.5 * (m_before - m) / r
    assert mx.allclose(predict(x, there.c, here, before), expected, rtol=1e-9)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("path", PATHS)
def test_one_evaluation_a_step_and_none_where_beta_is_zero(name, path):
    times = []

    def field(t, x):
        times.append(t.item())
        return field_of(path, lambda t, x: mx.tanh(x))(t, x)

    solution = odeint(field, X0, [0.0, 1.0], method=method_of(name, path), step_size=0.125)
    ends = PATHS[path](1.0).beta == 0 or name == "dpmpp_2m"
    assert solution.stats.nfe == 8 + (not ends)
    assert solution.stats.accepted == 8
    np.testing.assert_allclose(sorted(times), np.arange(8 + (not ends)) / 8)
    assert mx.isfinite(solution.xs).all()


@pytest.mark.parametrize("name", METHODS)
def test_whole_way_converges_and_beats_euler(name):
    field = field_of("linear", lambda t, x: mx.tanh(x + t))
    exact = odeint(field, X0, [0.0, 1.0 - 1e-9], rtol=1e-11, atol=1e-11).xs[-1]

    def error(method, n):
        x = odeint(field, X0, [0.0, 1.0], method=method, step_size=1 / n).xs[-1]
        return mx.max(mx.abs(x - exact)).item()

    method = method_of(name, "linear")
    assert error(method, 64) < error(method, 16) / 4
    assert error(method, 16) < error("euler", 16)


@pytest.mark.parametrize("name", METHODS)
def test_states_between_the_steps(name):
    field = field_of("linear", lambda t, x: mx.tanh(x + t))
    ts = np.linspace(0, 0.9, 10)
    exact = odeint(field, X0, ts, rtol=1e-10, atol=1e-10).xs
    xs = odeint(field, X0, ts, method=method_of(name, "linear"), step_size=0.02).xs
    assert mx.abs(xs - exact).max().item() < 2e-3


@pytest.mark.parametrize("ts", [[1.0, 0.0], [1.0, 1.5], [0.0, 1.5], [-0.5, 1.0]])
def test_only_from_source_to_data(ts):
    with pytest.raises(ValueError, match=r"dpmpp_2m solves from the source .* runs from"):
        odeint(lambda t, x: x, X0, ts, method=method_of("dpmpp_2m", "linear"))


def test_max_steps():
    method = method_of("unipc_2", "linear")
    with pytest.raises(SolverError, match=r"unipc_2 took max_steps=3 .*method=method"):
        odeint(lambda t, x: -x, X0, [0.0, 1.0], method=method, step_size=0.1, max_steps=3)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("way", ["mx.grad", "adjoint", "value and grad"])
def test_gradients_are_finite_differences(name, way):
    """In x0 and in an argument, with outputs inside of steps."""
    method, w, eps = method_of(name, "linear"), array64(0.7), 1e-6
    ts, options = [0.0, 0.45, 1.0], {"method": method, "step_size": 0.1}

    def field(t, x, w):
        return field_of("linear", lambda t, x: mx.tanh(w * x))(t, x)

    def loss(xs):
        return mx.sum(xs[1] ** 2) + mx.sum(xs[2])

    def value(x0, w, solve=odeint):
        return loss(solve(field, x0, ts, args=(w,), **options).xs)

    if way == "value and grad":
        _, found, _ = odeint_value_and_grad(loss, field, X0, ts, args=(w,), **options)
        in_x0, in_w = found.x0, found.args[0]
    else:
        solve = odeint if way == "mx.grad" else odeint_adjoint
        in_x0, in_w = mx.grad(lambda x0, w: value(x0, w, solve), argnums=(0, 1))(X0, w)
    change = (value(X0, w + eps) - value(X0, w - eps)) / (2 * eps)
    assert in_w.item() == pytest.approx(change.item(), rel=1e-6)
    for k in ((0, 1), (2, 0)):
        step = array64(np.zeros((3, 2)))
        step[k] = eps
        change = (value(X0 + step, w) - value(X0 - step, w)) / (2 * eps)
        assert in_x0[k].item() == pytest.approx(change.item(), rel=1e-6)


def test_no_other_equation_is_solved_back():
    with pytest.raises(ValueError, match="expected a name in METHODS"):
        odeint_value_and_grad(
            mx.sum,
            lambda t, x: x,
            X0,
            [0.0, 1.0],
            method=method_of("unipc_2", "linear"),
            adjoint="backsolve",
        )
