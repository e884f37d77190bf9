"""Gradients through solves of fields that differentiate inside, where MLX loses track."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from flowmlx.likelihood import log_prob, standard_normal_log_prob
from flowmlx.solvers import ADAPTIVE, SDE_METHODS, odeint, odeint_per_sample, sdeint
from flowmlx.solvers.tracing import tracing


def array64(numbers):
    return mx.array(np.asarray(numbers), dtype=mx.float64)


# Three ways to write x' = w x whose slope is a derivative itself.
def by_grad(w):
    return lambda t, x: mx.grad(lambda z: mx.sum(w * z**2 / 2))(x)


def by_vjp(w):
    return lambda t, x: mx.vjp(lambda z: w * z**2 / 2, [x], [mx.ones_like(x)])[1][0]


def by_jvp(w):
    return lambda t, x: mx.jvp(lambda z: w * z**2 / 2, [x], [mx.ones_like(x)])[1][0]


KINDS = {"grad": by_grad, "vjp": by_vjp, "jvp": by_jvp}


def options_for(method):
    tight = {"rtol": 1e-8, "atol": 1e-8}
    return {"method": method, **(tight if method in ADAPTIVE else {"step_size": 1 / 100})}


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *(("dopri5", kind) for kind in KINDS),
        *(("rk4", "grad"), ("rk4", "jvp"), ("ab3", "grad"), ("abm2", "vjp"), ("bosh3", "vjp")),
    ],
)
def test_every_method_and_every_way_to_differentiate_inside(method, kind):
    """x(1) = x0 exp(w (t1 - t0)), in w that the field closes over, x0 and both times."""
    w, x0, ts = array64(0.7), array64([1.5]), array64([0.25, 1.0])

    def end(w, x0, ts):
        return mx.sum(odeint(KINDS[kind](w), x0, ts, **options_for(method)).xs[-1])

    in_w, in_x0, in_ts = mx.grad(end, argnums=(0, 1, 2))(w, x0, ts)
    growth = math.exp(0.7 * 0.75)
    close = {"rtol": 1e-4}
    np.testing.assert_allclose(in_w.item(), 0.75 * 1.5 * growth, **close)
    np.testing.assert_allclose(in_x0.item(), growth, **close)
    np.testing.assert_allclose(np.array(in_ts), [-0.7 * 1.5 * growth, 0.7 * 1.5 * growth], **close)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solve", [odeint, odeint_per_sample])
def test_solves_one_after_the_other(solve, kind):
    """A later solve must not cut what an earlier one, or any inner derivative, has left behind."""
    w, x0, ts = array64(0.5), array64([1.0, 2.0]), array64([0.0, 0.4, 1.0])

    def end(w, x0, ts):
        x0 = mx.grad(lambda z: mx.sum(w * z**2))(x0)  # 2 w x0
        half = solve(KINDS[kind](w), x0, ts[:2], rtol=1e-9, atol=1e-9).xs[-1]
        return mx.sum(solve(KINDS[kind](w), half, ts[1:], rtol=1e-9, atol=1e-9).xs[-1])

    in_w, in_x0, in_ts = mx.grad(end, argnums=(0, 1, 2))(w, x0, ts)
    whole = 2 * 0.5 * 3 * math.exp(0.5)  # 2 w (1 + 2) exp(w)
    np.testing.assert_allclose(in_w.item(), whole / 0.5 + whole, rtol=1e-6)
    np.testing.assert_allclose(np.array(in_x0), 2 * 0.5 * math.exp(0.5), rtol=1e-6)
    np.testing.assert_allclose(np.array(in_ts), [-0.5 * whole, 0, 0.5 * whole], atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_a_hamiltonian_network(method, compiled):
    """Against finite differences in a weight, for a field that a module and `mx.grad` make."""
    energy = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    energy.apply(lambda p: mx.array(np.linspace(-1, 1, p.size).reshape(p.shape), mx.float64))
    x0 = array64([[0.3, -0.2], [1.0, 0.4]])
    kept = energy.parameters()

    def loss(parameters):
        energy.update(parameters)

        def field(t, x):
            slope = mx.grad(lambda x: mx.sum(energy(x)))(x)
            return mx.concatenate([slope[:, 1:], -slope[:, :1]], axis=1)

        # What a compiled function captures is a constant to MLX, unless it is named.
        field = mx.compile(field, inputs=energy.state) if compiled else field
        options = {"step_size": 0.1} if method == "rk4" else {"rtol": 1e-10, "atol": 1e-10}
        return mx.sum(odeint(field, x0, [0.0, 1.0], method=method, **options).xs[-1] ** 3)

    found = mx.grad(loss)(kept)["layers"][0]["weight"]
    energy.update(kept)

    def moved(by):
        step = array64(np.eye(1, 16, 5).reshape(8, 2) * by)
        weight = kept["layers"][0]["weight"] + step
        layers = [{**kept["layers"][0], "weight": weight}, *kept["layers"][1:]]
        return loss({"layers": layers}).item()

    expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert abs(expected) > 1e-3
    # Single precision in tanh's float64 derivative leaves some digits.
    assert found[2, 1].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", SDE_METHODS)
def test_noisy_solves_of_fields_that_differentiate_inside(method, key):
    """dx = w x dt + s dW; the gradients in w and s against differences at the same noise."""

    def end(w, x0, s):
        options = {"key": key, "method": method, "step_size": 1 / 64}
        scale = lambda t, x: mx.grad(lambda s: s * s / 2)(s)  # noqa: E731
        return mx.sum(sdeint(by_grad(w), scale, x0, [0.0, 1.0], **options).xs[-1])

    at = array64(0.5), array64([1.0, -2.0]), array64(0.3)
    found = mx.grad(end, argnums=(0, 1, 2))(*at)
    np.testing.assert_allclose(np.array(found[1]), math.exp(0.5), rtol=2e-2)
    for n in (0, 2):
        change = [array64(1e-6 if k == n else 0) for k in range(3)]
        above, below = ([a + sign * b for a, b in zip(at, change, strict=True)] for sign in (1, -1))
        expected = (end(*above) - end(*below)).item() / 2e-6
        assert found[n].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize("inner", [False, True])
def test_gradients_of_log_densities(divergence, inner, without_compile):
    """x' = w x takes N(0, 1) to N(0, exp(2 w)): log p(x) = -x^2 exp(-2 w) / 2 - w + const."""
    w, x1 = array64(0.4), array64([[1.0], [-0.5], [2.0]])

    def total(w, x1):
        field = by_grad(w) if inner else lambda t, x: w * x
        probes = {} if divergence == "exact" else {"key": mx.random.key(0)}
        found = log_prob(
            field,
            x1,
            standard_normal_log_prob,
            divergence=divergence,
            rtol=1e-9,
            atol=1e-9,
            **probes,
        )
        return mx.sum(found.log_prob)

    in_w, in_x1 = mx.grad(total, argnums=(0, 1))(w, x1)
    shrink = math.exp(-0.8)
    np.testing.assert_allclose(np.array(in_x1), -np.array(x1) * shrink, rtol=1e-6)
    assert in_w.item() == pytest.approx(5.25 * shrink - 3, rel=1e-6)


def test_gradients_of_a_compiled_log_density():
    w, x1 = mx.array(0.4), mx.array([[1.0], [-0.5], [2.0]])

    def total(w, x1):
        found = log_prob(by_grad(w), x1, standard_normal_log_prob, divergence="exact")
        return mx.sum(found.log_prob)

    in_w, in_x1 = mx.grad(total, argnums=(0, 1))(w, x1)
    np.testing.assert_allclose(np.array(in_x1), -np.array(x1) * math.exp(-0.8), rtol=1e-3)
    assert in_w.item() == pytest.approx(5.25 * math.exp(-0.8) - 3, rel=1e-3)


def test_per_sample_solves_have_gradients_in_their_times():
    x0, ts = array64([1.0, 2.0]), array64([0.2, 0.5, 1.0])

    def value(ts):
        xs = odeint_per_sample(lambda t, x: -2 * t * x, x0, ts, rtol=1e-9, atol=1e-9).xs
        return mx.sum(xs[-1]) + mx.sum(xs[1])

    def exact(t):  # x(t) = x0 exp(t0^2 - t^2)
        return 3 * np.exp(0.04 - t**2)

    expected = [0.4 * (exact(0.5) + exact(1.0)), -exact(0.5), -2 * exact(1.0)]
    np.testing.assert_allclose(np.array(mx.grad(value)(ts)), expected, rtol=1e-6)


def test_noisy_solves_refuse_gradients_in_their_times(key):
    def end(ts):
        xs = sdeint(lambda t, x: -x, lambda t, x: 1.0, mx.ones(2), ts, key=key, step_size=0.1).xs
        return mx.sum(xs[-1])

    with pytest.raises(ValueError, match="no gradient in its times"):
        mx.grad(end)(mx.array([0.0, 1.0]))
    assert math.isfinite(end(mx.array([0.0, 1.0])).item())


def test_dense_solutions_have_gradients_in_time_and_parameters():
    w, x0 = array64(0.5), array64([2.0])

    def value(w, t):
        solution = odeint(by_grad(w), x0, [0.0, 1.0], rtol=1e-9, atol=1e-9, dense=True)
        return mx.sum(solution(t))

    in_w, in_t = mx.grad(value, argnums=(0, 1))(w, array64([0.3, 0.9]))
    ends = 2 * np.exp([0.15, 0.45])
    np.testing.assert_allclose(in_w.item(), ends @ [0.3, 0.9], rtol=1e-6)
    np.testing.assert_allclose(np.array(in_t), 0.5 * ends, rtol=1e-6)


def test_second_derivatives_through_a_solve():
    """d2/dw2 of x0 exp(w) is x0 exp(w)."""

    def end(w):
        return mx.sum(odeint(by_grad(w), array64([2.0]), [0.0, 1.0], rtol=1e-10, atol=1e-10).xs[-1])

    assert mx.grad(mx.grad(end))(array64(0.5)).item() == pytest.approx(2 * math.exp(0.5), rel=1e-6)


# x' = t x: x(t1) = x0 exp((t1^2 - t0^2) / 2).
@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize(
    "solve",
    [
        lambda ts, field: odeint(field, array64([1.5]), ts, rtol=1e-10, atol=1e-10),
        lambda ts, field: odeint(field, array64([1.5]), ts, method="rk4", step_size=1 / 50),
        lambda ts, field: odeint_per_sample(field, array64([1.5]), ts, rtol=1e-10, atol=1e-10),
    ],
)
def test_times_have_second_and_forward_derivatives(solve, end):
    times = [0.25, 1.0]

    def last(w, t):
        ts = [t if k == end else array64(u) for k, u in enumerate(times)]
        return mx.sum(solve(mx.stack(ts), lambda t, x: w * t * x).xs[-1])

    w, t, sign = array64(1.0), array64(times[end]), 2 * end - 1
    x, u = 1.5 * math.exp((1 - 0.25**2) / 2), times[end]
    assert mx.grad(last, 1)(w, t).item() == pytest.approx(sign * u * x, rel=1e-6)
    assert mx.jvp(last, [w, t], [0 * w, w])[1][0].item() == pytest.approx(sign * u * x, rel=1e-6)
    twice = mx.grad(lambda t: mx.grad(last, 1)(w, t))(t)
    assert twice.item() == pytest.approx((sign + u * u) * x, rel=1e-6)
    mixed = sign * u * x * (1 + (1 - 0.25**2) / 2)
    for first, second in ((0, 1), (1, 0)):  # in either order
        found = mx.grad(lambda *at, n=first: mx.grad(last, n)(*at), second)(w, t)
        assert found.item() == pytest.approx(mixed, rel=1e-6)


def test_dense_solutions_have_second_and_forward_derivatives():
    def state(t):
        solution = odeint(lambda t, x: 0.5 * x, array64([2.0]), [0.0, 1.0], dense=True, rtol=1e-9)
        return mx.sum(solution(t))

    x = 2 * math.exp(0.25)
    assert mx.grad(mx.grad(state))(array64(0.5)).item() == pytest.approx(x / 4, rel=1e-6)
    (found,) = mx.jvp(state, [array64(0.5)], [array64(1.0)])[1]
    assert found.item() == pytest.approx(x / 2, rel=1e-6)


def test_gradients_of_no_samples_are_zero(without_compile):
    """MLX's own gradient of xs[-1] ends the process there."""
    none = mx.zeros((0, 2))

    def density(w):
        options = {"divergence": "exact", "method": "rk4", "step_size": 0.5}
        return mx.sum(log_prob(by_grad(w), none, standard_normal_log_prob, **options).log_prob)

    def solve(ts):
        xs = odeint(lambda t, x: x, none, ts, event=lambda t, x: t - 0.5).xs
        return mx.sum(xs) + mx.sum(ts)

    assert mx.grad(density)(mx.array(1.0)).item() == 0
    assert mx.grad(solve)(mx.array([0.0, 1.0])).tolist() == [1, 1]


def test_transformations_are_noticed():
    seen = []

    def look(x):
        seen.append(tracing())
        return mx.sum(x)

    mx.grad(look)(mx.ones(2))
    mx.vjp(look, [mx.ones(2)], [mx.ones(())])
    mx.jvp(look, [mx.ones(2)], [mx.ones(2)])
    mx.vmap(look)(mx.ones((2, 2)))
    mx.compile(look)(mx.ones(2))
    assert seen == [True] * 5
    assert not tracing()
