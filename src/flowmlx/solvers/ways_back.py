"""Gradients of long solves in little memory: the ways back.

`mx.grad` through `odeint` keeps all that the steps computed until it has gone back through them.
Here only the states between steps are kept, or not even those.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_map

from flowmlx.solvers.arrays import as_numpy
from flowmlx.solvers.inputs import Field
from flowmlx.solvers.integrate import between, collect, states_at
from flowmlx.solvers.loops import steps_of
from flowmlx.solvers.methods import has_name
from flowmlx.solvers.options import SolveOptions, complete
from flowmlx.solvers.problem import Problem, prepare
from flowmlx.solvers.stepper import Point, Step, Stepper
from flowmlx.solvers.times import time_gradients
from flowmlx.solvers.tracing import tracing
from flowmlx.solvers.weights import Weights, leaves_of


def look_up_adjoint(adjoint: str, method: Stepper) -> "Adjoint":
    """The adjoint of that name, for a method that it goes with."""
    if not isinstance(adjoint, str) or adjoint not in ADJOINTS:
        raise ValueError(f"unknown adjoint {adjoint!r}; known: {', '.join(ADJOINTS)}")
    chosen = ADJOINTS[adjoint]
    if chosen.solves and not has_name(method):
        raise ValueError(
            f"adjoint {adjoint!r} solves another equation, and method is {method.name}, which may "
            'be made for this one; expected a name in METHODS, or adjoint="discrete"'
        )
    return chosen


class Leg(NamedTuple):
    """A step that was taken from (t, x) to t_next, and what the next one was told."""

    t: float
    t_next: float
    x: mx.array
    memory: Any


class Adjoint(NamedTuple):
    """A way back: `sweep` returns gradients in x0, but for xs[0], and in the weights.

    `needs_legs`: whether it takes the steps again. `solves`: whether it solves an equation of its
    own with the method.
    """

    sweep: Callable[..., tuple[mx.array, list[mx.array]]]
    needs_legs: bool
    solves: bool


def discrete(
    problem: Problem, weights: Weights, legs: list[Leg], xs: mx.array, cotangents: mx.array
) -> tuple[mx.array, list[mx.array]]:
    """Take each step again, the last first, and pull the gradients back through it."""
    field, method, stop = problem.field, problem.method, len(problem.times)
    told = [method.start(problem.times, xs[0]), *(leg.memory for leg in legs)]
    in_state, in_memory = mx.zeros_like(field.x0), []
    in_weights = [mx.zeros_like(w) for w in weights.leaves]
    for leg, memory in reversed(list(zip(legs, told, strict=False))):
        wanted = between(problem.times, leg.t, leg.t_next)
        here = _together([cotangents[stop - len(wanted) : stop]], wanted)
        in_state, in_memory, more = _pull_back(
            field, method, weights, leg, memory, wanted, ([in_state, *here], in_memory)
        )
        in_weights = [a + b for a, b in zip(in_weights, more, strict=True)]
        in_state, in_memory, in_weights = settled((in_state, in_memory, in_weights))
        stop -= len(wanted)
    if in_memory:  # of the first step, which was told something of x0

        def told_first(x: mx.array) -> list[mx.array]:
            return Weights((method.start(problem.times, x),)).leaves

        in_state = in_state + mx.vjp(told_first, [xs[0]], in_memory)[1][0]
    return in_state, in_weights


def _pull_back(
    slope: Field,
    method: Stepper,
    weights: Weights,
    leg: Leg,
    memory: Any,
    wanted: list[float],
    later: tuple[list[mx.array], list[mx.array]],
) -> tuple[mx.array, list[mx.array], list[mx.array]]:
    """Gradients in the state at the start of a step, in what it was told, and in the weights.

    `memory`: what it was told. `later`: gradients in what it gave, which are the state at its end
    and, if there are any, those at the times `wanted` in it; and in what it told the next step,
    none after the last.
    """
    told = Weights((memory,))
    cut = 1 + len(told.leaves)
    states_later, memory_later = later

    def step(x: mx.array, *leaves: mx.array) -> list[mx.array]:
        field = slope.with_args(weights.bind(leaves[cut - 1 :]))
        (memory,) = told.bind(leaves[: cut - 1])
        step = method.step(field, Point(leg.t, x), leg.t_next, memory)
        inside = _together(states_at(field, step, wanted), wanted)
        passed = Weights((step.memory,)).leaves if memory_later else []
        return [step.end.x, *inside, *passed]

    _, (in_state, *pulled) = mx.vjp(
        step, [leg.x, *told.leaves, *weights.leaves], [*states_later, *memory_later]
    )
    return in_state, pulled[: cut - 1], pulled[cut - 1 :]


def time_gradients_of(
    problem: Problem, xs: mx.array, back: mx.array, cotangents: mx.array
) -> mx.array:
    """Gradients in the times, given those in x0 that came `back` from later states."""
    # A start that comes later is one that lies further back.
    moved = mx.concatenate([-back[None], cotangents[1:]])
    return time_gradients(problem.field, problem.times, xs, moved)


def backsolve(
    problem: Problem, weights: Weights, legs: list[Leg], xs: mx.array, cotangents: mx.array
) -> tuple[mx.array, list[mx.array]]:
    """Solve da/dt = -(df/dx)^T a back in time, adding the cotangents of states on the way."""
    slope, times, field = problem.field, problem.times, _augmented(problem.field, weights)
    options: SolveOptions = {
        "method": problem.method,
        "max_steps": problem.max_steps,
        "control": problem.control,
        **_tolerances_back(problem, weights),
    }
    a, in_weights = mx.zeros_like(slope.x0), [mx.zeros_like(w) for w in weights.leaves]
    for k in reversed(range(1, len(times))):
        a = a + cotangents[k]
        there, here = times[k - 1], times[k]
        start = (leaves_of(slope.tree(xs[k])), leaves_of(slope.tree(a)), in_weights)
        options["grid"] = None if problem.ends is None else _grid_back(problem.ends, here, there)
        back = prepare(field, start, [here, there], (), complete(SolveOptions, options))
        steps = settled_steps(steps_of(back, back.field.x0))
        solution = collect(back, back.field.x0, steps)
        _, a, in_weights = tree_map(lambda xs: xs[-1], solution.xs)
        a, in_weights = settled((slope.pack(a), in_weights))
    return a, in_weights


def _augmented(slope: Field, weights: Weights) -> Callable[[mx.array, Any], Any]:
    """The field of x, of the adjoint a, and of the gradients in the weights."""

    def field(t: mx.array, state: Any) -> Any:
        x, a, _ = state

        def f(x: mx.array, *leaves: mx.array) -> list[mx.array]:
            return [slope.with_args(weights.bind(leaves))(t, x)]

        (v,), pulled = mx.vjp(f, [slope.pack(x), *weights.leaves], [slope.pack(a)])
        return leaves_of(slope.tree(v)), leaves_of(slope.tree(-pulled[0])), [-g for g in pulled[1:]]

    return field


def _tolerances_back(problem: Problem, weights: Weights) -> SolveOptions:
    """Those of the solve for x and for a, none for the weights.

    The norm of an error is a mean over all numbers. That of the weights counts for nothing; with
    this factor the others count as if they were alone.
    """
    size = 2 * problem.field.x0.size
    factor = math.sqrt(size / (size + sum(w.size for w in weights.leaves)))
    rtol, atol = (
        (*(2 * [[factor * a for a in each]]), [b for _ in weights.leaves])
        for each, b in zip(problem.tolerances, (0.0, 1e30), strict=True)
    )
    return {"rtol": rtol, "atol": atol}


def _grid_back(ends: list[float], here: float, there: float) -> list[float]:
    """Steps from `here` back to `there` between the ends of those that led forward."""
    tiny = 1e-6 * abs(here - there)
    inner = between(ends[::-1], here, there)
    return [here, *(t for t in inner if min(abs(t - here), abs(t - there)) > tiny), there]


def noted(steps: Iterable[Step], legs: list[Leg]) -> Iterator[Step]:
    """The steps as they come; the accepted ones are noted down."""
    for step in steps:
        if step.accepted:
            legs.append(Leg(step.start.t, step.end.t, step.start.x, step.memory))
        yield step


def settled(tree: Any) -> Any:
    """The arrays of a tree, evaluated and without what led to them.

    Where a transformation is under way they are copies, which have no derivatives.
    """
    if not tracing():
        mx.eval([leaf for leaf in leaves_of(tree) if isinstance(leaf, mx.array)])
        return tree

    def copy(x: Any) -> Any:
        return mx.array(as_numpy(x), dtype=x.dtype) if isinstance(x, mx.array) else x

    return tree_map(copy, tree)


def settled_steps(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps as they come; inside `mx.grad`, the next starts afresh from the numbers of each."""
    for step in steps:
        if tracing():
            step.end.x, step.end.k = settled((step.end.x, step.end.k))
            step.inside, step.memory = settled((step.inside, step.memory))
        yield step


def _together(pieces: list[mx.array], wanted: list[float]) -> list[mx.array]:
    """The pieces as one array, none where no times are wanted."""
    return [mx.concatenate(pieces)] if wanted else []


ADJOINTS: dict[str, Adjoint] = {
    "discrete": Adjoint(discrete, needs_legs=True, solves=False),
    "backsolve": Adjoint(backsolve, needs_legs=False, solves=True),
}
