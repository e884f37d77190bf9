"""Steps of other sorts, each defined here and known to nothing in the package."""

import inspect
import math
from fractions import Fraction
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from flowmlx.solvers import (
    ADAPTIVE,
    METHODS,
    Point,
    SolverError,
    Step,
    Stepper,
    Tableau,
    odeint,
    odeint_adjoint,
    odeint_per_sample,
    odeint_value_and_grad,
)
from flowmlx.solvers.control import per_sample_max, rms


def array64(numbers):
    return mx.array(np.asarray(numbers), dtype=mx.float64)


def order_of(counts, errors):
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def implicit_midpoint(field, start, t_next, rounds=12):
    """The state at the end, by iteration to a fixed point."""
    h, x = t_next - start.t, start.x
    for _ in range(rounds):
        x = start.x + h * field(start.t + h / 2, (start.x + x) / 2)
    return x


class ImplicitMidpoint(NamedTuple):
    rounds: int = 12
    name: str = "implicit_midpoint"
    order: int = 2
    error_order: None = None

    def start(self, ts, x0):
        return None

    def step(self, field, start, t_next, memory):
        return Step(start, Point(t_next, implicit_midpoint(field, start, t_next, self.rounds)))


class Doubled(NamedTuple):
    """Implicit midpoint in two half steps, whose distance to one whole step is the error."""

    name: str = "doubled"
    order: int = 2
    error_order: int = 2

    def start(self, ts, x0):
        return None

    def step(self, field, start, t_next, memory):
        whole = implicit_midpoint(field, start, t_next)
        middle = (start.t + t_next) / 2
        halfway = Point(middle, implicit_midpoint(field, start, middle))
        x = implicit_midpoint(field, halfway, t_next)
        return Step(start, Point(t_next, x), error=(x - whole) / 3)


def swing(t, z):
    """A pendulum whose gravity grows: x'' = -(1 + t) x, made of exact operations."""
    return mx.stack([z[1], -(1 + t) * z[0]])


def swing_exactly(ts):
    xs = odeint(swing, array64([1.0, 0.0]), ts, rtol=1e-12, atol=1e-12).xs
    return np.array(xs)


@pytest.mark.parametrize("reverse", [False, True])
def test_an_implicit_step_has_its_order_at_all_output_times(reverse):
    ts = np.array([0.0, 0.31, 0.5, 1.23, 2.0])  # between the ends of the steps as well
    exact = swing_exactly(ts)
    ts, exact = (ts[::-1], exact[::-1]) if reverse else (ts, exact)
    counts, errors = [16, 32, 64], []
    for n in counts:
        solution = odeint(
            swing, array64(exact[0]), ts, method=ImplicitMidpoint(), step_size=2 / n, dense=True
        )
        errors.append(np.abs(np.array(solution.xs) - exact).max())
        np.testing.assert_allclose(np.array(solution(ts)), np.array(solution.xs), atol=1e-14)
        assert solution.stats.accepted == n
    assert order_of(counts, errors) == pytest.approx(2, abs=0.1)
    assert errors[-1] < 2e-3


def test_an_implicit_step_keeps_what_explicit_ones_lose():
    """Circles stay circles: |x| of x' = J x, in a tree, from output to output."""

    def turn(t, state):
        return {"x": state["y"], "y": -state["x"]}

    start = {"x": mx.array([[0.6]], dtype=mx.float64), "y": mx.array([[0.8]], dtype=mx.float64)}
    ts = np.linspace(0, 30, 61)
    radius = {}
    for method in (ImplicitMidpoint(rounds=30), "midpoint"):
        xs = odeint(turn, start, ts, method=method).xs
        radius[method] = np.array(xs["x"] ** 2 + xs["y"] ** 2).ravel()
    np.testing.assert_allclose(radius[ImplicitMidpoint(rounds=30)], 1, atol=1e-9)
    assert np.abs(radius["midpoint"] - 1).max() > 0.1


def test_an_event_and_the_progress_of_an_implicit_step():
    seen = []
    solution = odeint(
        lambda t, x: -x,
        array64([1.0]),
        [0.0, 3.0],
        method=ImplicitMidpoint(),
        step_size=0.01,
        event=lambda t, x: x[0] - 0.5,
        progress=seen.append,
    )
    assert solution.status == "event"
    assert solution.ts[-1].item() == pytest.approx(math.log(2), abs=1e-5)
    assert seen == pytest.approx(np.arange(1, 71) / 300)


def turned(x, rotation):
    """Rodrigues: x about the vectors `rotation`, by their lengths, which are right angles to x."""
    angle = mx.sqrt(mx.sum(rotation**2, axis=-1, keepdims=True))
    axis = rotation / mx.maximum(angle, 1e-30)
    cos, sin = (
        array64(f(np.array(angle)))
        for f in (np.cos, np.sin)  # MLX's are exact to float32
    )
    return x * cos + mx.linalg.cross(axis, x) * sin


class OnSphere(NamedTuple):
    """The midpoint rule along great circles; between the steps as well."""

    name: str = "on_sphere"
    order: int = 2
    error_order: None = None

    def start(self, ts, x0):
        if np.abs(np.linalg.norm(np.array(x0), axis=-1) - 1).max() > 1e-6:
            raise ValueError("expected points on the unit sphere")

    def step(self, field, start, t_next, memory):
        h, x = t_next - start.t, start.x
        middle = turned(x, h / 2 * mx.linalg.cross(x, start.slope(field)))
        rotation = h * mx.linalg.cross(middle, field(start.t + h / 2, middle))
        # Of the part that leaves the great circle through x nothing is kept.
        rotation = rotation - mx.sum(rotation * x, axis=-1, keepdims=True) * x

        def inside(theta):
            return mx.stack([turned(x, share * rotation) for share in theta.tolist()])

        return Step(start, Point(t_next, turned(x, rotation)), inside=inside)


def test_a_step_on_the_sphere_stays_there_and_has_its_order():
    """Rotation about the z axis at the rate 1 + t, by the angle t + t^2 / 2."""
    latitude = np.array([0.2, -0.7, 1.1])
    start = np.stack([np.cos(latitude), 0 * latitude, np.sin(latitude)], axis=1)
    ts = [0.0, 0.33, 0.5, 0.81, 1.0]
    angle = np.array([t + t * t / 2 for t in ts])[:, None]
    exact = np.stack(
        [np.cos(angle) * start[:, 0], np.sin(angle) * start[:, 0], 0 * angle + start[:, 2]], axis=-1
    )

    def spin(t, x):
        return (1 + t) * mx.stack([-x[:, 1], x[:, 0], mx.zeros_like(x[:, 0])], axis=1)

    counts, errors = [10, 20, 40], []
    for n in counts:
        xs = np.array(odeint(spin, array64(start), ts, method=OnSphere(), step_size=1 / n).xs)
        np.testing.assert_allclose(np.linalg.norm(xs, axis=-1), 1, atol=1e-12)
        errors.append(np.abs(xs - exact).max())
    assert order_of(counts, errors) == pytest.approx(2, abs=0.2)
    assert errors[-1] < 1e-3
    # The cubic polynomial between points of the sphere leaves it.
    flat = np.array(odeint(spin, array64(start), ts, method="rk4", step_size=0.1).xs)
    assert np.abs(np.linalg.norm(flat, axis=-1) - 1).max() > 1e-8
    with pytest.raises(ValueError, match="on the unit sphere"):
        odeint(spin, 2 * array64(start), ts, method=OnSphere(), step_size=0.1)


class Jumps(NamedTuple):
    """A process that goes up by one at the rate that the field says; still between its steps."""

    key: mx.array
    name: str = "jumps"
    order: int = 1
    error_order: None = None

    def start(self, ts, x0):
        return self.key

    def step(self, field, start, t_next, memory):
        draw, key = mx.random.split(memory)
        chance = (t_next - start.t) * start.slope(field)
        x = start.x + mx.random.bernoulli(chance, start.x.shape, key=draw)
        return Step(
            start,
            Point(t_next, x),
            inside=lambda theta: mx.stack([start.x] * len(theta)),
            memory=key,
        )


def test_a_jump_process_has_its_mean_and_variance():
    def solve(seed, ts):
        method = Jumps(mx.random.key(seed))
        return odeint(lambda t, x: 3 + 0 * x, mx.zeros(20_000), ts, method=method, step_size=1 / 64)

    xs = np.array(solve(0, [0.0, 1.0, 2.0, 2.001]).xs)
    assert (xs == xs.round()).all()
    np.testing.assert_allclose(xs[1:3].mean(axis=1), [3, 6], rtol=0.02)
    # Of n draws with the chance 3 / 64 in each unit of time.
    np.testing.assert_allclose(xs[1:3].var(axis=1) / (1 - 3 / 64), [3, 6], rtol=0.03)
    assert (np.diff(xs, axis=0) >= 0).all()
    assert mx.array_equal(solve(1, [0.0, 1.0]).xs, solve(1, [0.0, 1.0]).xs)
    assert not mx.array_equal(solve(1, [0.0, 1.0]).xs, solve(2, [0.0, 1.0]).xs)


def test_a_method_with_an_error_chooses_its_steps():
    ts, tolerances, errors, steps = np.linspace(0, 2, 9), [1e-3, 1e-4, 1e-5], [], []
    exact = swing_exactly(ts)
    for tolerance in tolerances:
        solution = odeint(
            swing, array64([1.0, 0.0]), ts, method=Doubled(), rtol=tolerance, atol=tolerance
        )
        errors.append(np.abs(np.array(solution.xs) - exact).max())
        steps.append(solution.stats.accepted)
        assert solution.stats.smallest_step < solution.stats.largest_step
    # The error of a step goes with its cube, and that of all of them with its square.
    assert order_of(tolerances, steps) == pytest.approx(1 / 3, abs=0.05)
    assert order_of(tolerances, errors) == pytest.approx(-2 / 3, abs=0.1)
    assert errors[-1] < 1e-3
    told = odeint(swing, array64([1.0, 0.0]), ts, method=Doubled(), step_size=0.05).stats
    assert (told.accepted, told.rejected) == (40, 0)


class Counting(NamedTuple):
    """Another method, which counts its accepted steps and notes the count that each was told."""

    inner: Any
    told: list
    name: str = "counting"
    order: int = 5
    error_order: int = 4

    def start(self, ts, x0):
        return 0

    def step(self, field, start, t_next, memory):
        self.told.append(memory)
        step = self.inner.step(field, start, t_next, None)
        step.memory = memory + 1
        return step


def test_a_rejected_step_is_taken_again_with_what_it_was_told():
    def hump(t, x):
        return mx.ones_like(x) / (1 + (400 * (t - 1)) ** 2)

    method = Counting(METHODS["dopri5"], [])
    stats = odeint(hump, mx.zeros(1), [0.0, 2.0], method=method, rtol=1e-6, atol=1e-6).stats
    assert stats.rejected > 2
    assert len(method.told) == stats.accepted + stats.rejected
    assert method.told[-1] == stats.accepted - 1


def test_failures_name_the_method_and_how_it_was_given():
    with pytest.raises(
        SolverError, match=r"^doubled took max_steps=3 .*method=method, max_steps=30"
    ):
        odeint(swing, array64([1.0, 0.0]), [0.0, 9.0], method=Doubled(), max_steps=3)
    with pytest.raises(SolverError, match=r"^implicit_midpoint met .* not finite"):
        odeint(lambda t, x: x * math.nan, mx.ones(1), [0.0, 1.0], method=ImplicitMidpoint())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda step: step.end.x, r"returned an mx\.array .*expected a solvers\.Step"),
        (lambda step: Step(step.start, Point(step.end.t, step.end.x[0])), "a state of"),
        (lambda step: Step(step.start, step.end), "and its step no error"),
    ],
)
def test_what_is_no_step_is_refused(change, words):
    class Wrong(Doubled):
        def step(self, *arguments):
            return change(super().step(*arguments))

    with pytest.raises((TypeError, ValueError), match=f"^doubled.*{words}"):
        odeint(swing, array64([1.0, 0.0]), [0.0, 1.0], method=Wrong())
    if words == "a state of":
        with pytest.raises(ValueError, match=words):
            odeint(swing, array64([1.0, 0.0]), [0.0, 1.0], method=Wrong(), step_size=0.1)


def rationals(*numbers):
    return tuple(map(Fraction, numbers))


# Heun's method, with Euler's inside.
PAIR = Tableau(
    order=2,
    c=rationals(0, 1),
    a=((), rationals(1)),
    b=rationals("1/2", "1/2"),
    error=rationals("-1/2", "1/2"),
    error_order=1,
    name="heun_euler",
)


@pytest.mark.parametrize("solve", [odeint, odeint_per_sample])
def test_a_table_of_ones_own(solve):
    """Without the slope at the end, which the next step therefore evaluates."""
    x0, calls = array64([[1.0], [2.0]]), []

    def field(t, x):
        calls.append(t)
        return -x

    solution = solve(field, x0, [0.0, 0.7, 2.0], method=PAIR, rtol=1e-6, atol=1e-6)
    exact = np.exp([0.0, -0.7, -2.0])[:, None, None] * np.array(x0)
    np.testing.assert_allclose(np.array(solution.xs), exact, atol=2e-5)
    assert solution.stats.nfe == len(calls)
    accepted = np.max(np.array(solution.stats.accepted))
    assert 2 * accepted <= len(calls) <= 2.5 * accepted


def test_steps_of_each_sample_need_a_method_without_memory_and_polynomials():
    class Jagged(NamedTuple):
        """dopri5 with a solution inside of its own."""

        inner: Any = METHODS["dopri5"]
        name: str = "jagged"
        order: int = 5
        error_order: int = 4

        def start(self, ts, x0):
            return None

        def step(self, field, start, t_next, memory):
            step = self.inner.step(field, start, t_next, None)
            step.inside = lambda theta: mx.stack([start.x] * len(theta))
            return step

    def solve(method):
        return odeint_per_sample(lambda t, x: -x, mx.ones((2, 1)), [0.0, 0.5, 1.0], method=method)

    with pytest.raises(TypeError, match="remembers"):
        solve(Counting(METHODS["dopri5"], []))
    with pytest.raises(TypeError, match="Polynomials"):
        solve(Jagged())
    with pytest.raises(ValueError, match=r"implicit_midpoint.*adaptive"):
        solve(ImplicitMidpoint())


class Lagging(NamedTuple):
    """Slopes at a running mean of the states, which is remembered from x0 on."""

    name: str = "lagging"
    order: int = 1
    error_order: None = None

    def start(self, ts, x0):
        return {"mean": x0 * x0, "steps": 0}

    def step(self, field, start, t_next, memory):
        mean = (memory["mean"] + start.x) / 2
        x = start.x + (t_next - start.t) * field(start.t, mean)
        return Step(start, Point(t_next, x), memory={"mean": mean, "steps": memory["steps"] + 1})


@pytest.mark.parametrize("method", [Lagging(), ImplicitMidpoint(), Doubled()], ids=lambda m: m.name)
def test_gradients_go_through_steps_and_what_they_remember(method):
    rng = np.random.default_rng(0)
    x0, w = array64(rng.normal(size=(3, 2))), array64(rng.normal(size=(2, 2)))
    ts = array64([0.0, 0.45, 1.0])
    options = {"method": method, "grid": [0.0, 0.2, 0.5, 0.6, 1.0]}

    def field(t, x, w):
        return mx.tanh(x @ w) + t * x

    def value(solve):
        def loss(x0, w):
            xs = solve(field, x0, ts, args=(w,), **options).xs
            return mx.sum(xs[1] ** 2) + mx.sum(xs[2])

        return loss

    expected = mx.grad(value(odeint), argnums=(0, 1))(x0, w)
    found = mx.grad(value(odeint_adjoint), argnums=(0, 1))(x0, w)
    _, alone, _ = odeint_value_and_grad(
        lambda xs: mx.sum(xs[1] ** 2) + mx.sum(xs[2]), field, x0, ts, args=(w,), **options
    )
    for a, b, c in zip(expected, found, (alone.x0, alone.args[0]), strict=True):
        np.testing.assert_allclose(np.array(b), np.array(a), rtol=1e-9)
        np.testing.assert_allclose(np.array(c), np.array(a), rtol=1e-9)
    step = np.zeros((3, 2))
    step[1, 0] = 1e-6
    change = value(odeint)(x0 + array64(step), w) - value(odeint)(x0 - array64(step), w)
    assert expected[0][1, 0].item() == pytest.approx(change.item() / 2e-6, rel=1e-6)
    with pytest.raises(ValueError, match="expected a name in METHODS"):
        odeint_adjoint(field, x0, ts, args=(w,), adjoint="backsolve", **options)


def test_methods_by_name_are_steppers():
    assert all(isinstance(method, Stepper) for method in METHODS.values())
    assert all(name == method.name for name, method in METHODS.items())
    assert set(ADAPTIVE) == {"bosh3", "dopri5", "tsit5"}
    x0 = mx.array([1.0, 2.0])
    for name in ("ab3", "dopri5"):
        by_name, given = (
            odeint(lambda t, x: -x * t, x0, [0.0, 0.5, 1.0], method=m)
            for m in (name, METHODS[name])
        )
        assert mx.array_equal(by_name.xs, given.xs)


@pytest.mark.parametrize("method", [None, "unipc_2", 5, ImplicitMidpoint, lambda t, x: x])
def test_what_is_no_method(method):
    with pytest.raises(ValueError, match=r"unknown method .* known: euler"):
        odeint(lambda t, x: -x, mx.ones(2), [0.0, 1.0], method=method)


def test_all_solvers_share_their_options():
    shared = {"method": "dopri5", "rtol": 1e-4, "atol": 1e-4, "max_steps": 10_000, "norm": rms}
    for solver in (odeint, odeint_adjoint, odeint_value_and_grad, odeint_per_sample):
        defaults = {p.name: p.default for p in inspect.signature(solver).parameters.values()}
        for name, value in shared.items():
            if name != "norm" or solver is not odeint_per_sample:
                assert defaults[name] == value
    for solver, word in ((odeint, "rtoll"), (odeint_per_sample, "norm")):
        with pytest.raises(TypeError, match=f"{word}.* expected one of .*rtol"):
            solver(lambda t, x: -x, mx.ones((2, 1)), [0.0, 1.0], **{word: per_sample_max})
