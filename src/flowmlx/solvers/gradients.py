"""Gradients of long solves in little memory: the ways back, and a loss with its gradients.

`mx.grad` through `odeint` keeps all that the steps computed until it has gone back through them.
Here only the states between steps are kept, or not even those. See `adjoint` for use in `mx.grad`.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from flowmlx.solvers.arrays import as_numpy, check_callable, check_returned
from flowmlx.solvers.control import DEFAULT_CONTROL, Controller, Norm, rms
from flowmlx.solvers.exponential import Exponential
from flowmlx.solvers.inputs import Field
from flowmlx.solvers.integrate import Problem, between, collect, prepare, states_at
from flowmlx.solvers.solution import Solution
from flowmlx.solvers.steps import Step, slopes_of, take_step
from flowmlx.solvers.tableaus import Adams, Tableau
from flowmlx.solvers.times import time_gradients
from flowmlx.solvers.tracing import tracing


class Gradients(NamedTuple):
    """Gradients in `x0` and `args`, trees like them, and in the times `ts`, (n,).

    In `args`, a module is its trainable parameters, and a leaf that is no floating-point array is
    None. `ts` is None where the times were no mx.array.
    """

    x0: Any
    ts: mx.array | None
    args: tuple


def odeint_value_and_grad(
    loss: Callable[[Any], mx.array],
    field: Callable[..., Any],
    x0: Any,
    ts: Any,
    *,
    args: tuple = (),
    adjoint: str = "discrete",
    method: str = "dopri5",
    rtol: Any = 1e-4,
    atol: Any = 1e-4,
    step_size: float | None = None,
    grid: Sequence[float] | np.ndarray | None = None,
    max_steps: int = 10_000,
    control: Controller = DEFAULT_CONTROL,
    norm: Norm = rms,
) -> tuple[mx.array, Gradients, Solution]:
    """Value and gradients of `loss(xs)`, a scalar, for the states `xs` of `odeint` at `ts`.

    The gradients are in `x0`, `ts` and `args`, each of which is a tree of arrays and modules
    (`mlx.nn.Module`), and in nothing that field or loss close over. Inside `mx.grad` write
    `odeint_adjoint` instead. The other arguments are those of `odeint`. `adjoint`: a name in
    ADJOINTS.

        discrete     the gradient of the numbers that the solve computed, as `mx.grad` gives it with
                     the lengths of steps held fixed. Keeps the state of each step and takes the
                     steps again, one at a time, on the way back.
        backsolve    solves the adjoint equation back from the last time, with x itself, from the
                     states at `ts` (Chen et al. 2018, arXiv 1806.07366, Eq. 3-5). Keeps nothing
                     else, but is only as exact as that solve is, with the same tolerances; the
                     errors of the gradients in `args` do not shorten its steps (Kidger et al. 2021,
                     arXiv 2009.09457).

    Derivatives in times are those of the flow, the slope at a state.

    Returns (value, Gradients(x0, ts, args), solution). Raises as `odeint` does, and ValueError for
    an unknown adjoint, a loss that is not a scalar, or inside `mx.grad` and the like.
    """
    chosen = look_up_adjoint(adjoint, method)
    if tracing():
        raise ValueError(
            "odeint_value_and_grad takes gradients itself, and mx.grad, mx.vmap or mx.compile "
            "around it would find none; write odeint_adjoint(field, x0, ts, args=...) there instead"
        )
    check_callable(loss, "loss", "of the states, loss(xs)")
    problem = prepare(
        field, x0, ts, args, method, rtol, atol, step_size, grid, max_steps, control, norm
    )
    slope, weights = problem.field, Weights(args)
    if not slope.x0.size:  # of a loss of nothing; MLX's gradient of it ends the process
        raise ValueError(f"x0 has shapes {slope.shapes}; expected at least one sample")
    legs: list[Leg] = []
    steps = problem.steps(slope.x0)
    solution = collect(problem, slope.x0, noted(steps, legs) if chosen.needs_legs else steps)
    xs = slope.join(solution.xs)
    value, cotangents = mx.value_and_grad(lambda xs: _scalar(loss(slope.tree(xs))))(xs)
    mx.eval(value, cotangents)
    try:
        back, in_weights = chosen.sweep(problem, weights, legs, xs, cotangents)
    finally:
        weights.restore()
    in_times = (
        time_gradients_of(problem, xs, back, cotangents) if isinstance(ts, mx.array) else None
    )
    gradients = Gradients(slope.tree(back + cotangents[0]), in_times, weights.tree(in_weights))
    return value, gradients, solution


def look_up_adjoint(adjoint: str, method: str | Exponential) -> "Adjoint":
    """The adjoint of that name, for a method that has one."""
    if not isinstance(adjoint, str) or adjoint not in ADJOINTS:
        raise ValueError(f"unknown adjoint {adjoint!r}; known: {', '.join(ADJOINTS)}")
    if isinstance(method, Exponential):
        raise ValueError(f"method is {method.name}; expected a name in METHODS, or mx.grad(odeint)")
    return ADJOINTS[adjoint]


class Leg(NamedTuple):
    """A step that was taken from (t, x) to t_next."""

    t: float
    t_next: float
    x: mx.array


class Adjoint(NamedTuple):
    """A way back: `sweep` returns gradients in x0, but for xs[0], and in the weights."""

    sweep: Callable[..., tuple[mx.array, list[mx.array]]]
    needs_legs: bool


def discrete(
    problem: Problem, weights: "Weights", legs: list[Leg], xs: mx.array, cotangents: mx.array
) -> tuple[mx.array, list[mx.array]]:
    """Take each step again, the last first, and pull the gradients back through it."""
    in_states = {len(legs): mx.zeros_like(problem.field.x0)}
    in_weights = [mx.zeros_like(w) for w in weights.leaves]
    method = problem.method
    assert isinstance(method, Tableau | Adams)
    reach = slopes_of(method)  # a multistep method looks at states before as well
    stop = len(problem.times)
    for n in reversed(range(len(legs))):
        window = legs[max(0, n + 1 - reach) : n + 1]
        wanted = between(problem.times, legs[n].t, legs[n].t_next)
        later = [in_states.pop(n + 1), *_together([cotangents[stop - len(wanted) : stop]], wanted)]
        pulled = _pull_back(problem.field, method, weights, window, wanted, later)
        for k, g in enumerate(pulled[: len(window)], start=n + 1 - len(window)):
            in_states[k] = in_states[k] + g if k in in_states else g
        in_weights = [a + b for a, b in zip(in_weights, pulled[len(window) :], strict=True)]
        in_states, in_weights = settled((in_states, in_weights))
        stop -= len(wanted)
    return in_states[0], in_weights


def _pull_back(
    slope: Field,
    method: Tableau | Adams,
    weights: "Weights",
    window: list[Leg],
    wanted: list[float],
    cotangents: list[mx.array],
) -> list[mx.array]:
    """Gradients in the states of `window` and the weights, from those in what the last step gave.

    That is the state at its end and, if there are any, the states at the times `wanted` in it.
    """

    def step(*leaves: mx.array) -> list[mx.array]:
        states, rest = leaves[: len(window)], leaves[len(window) :]
        field = slope.with_args(weights.bind(rest))
        past = [(leg.t, field(leg.t, x)) for leg, x in zip(window, states, strict=True)][::-1]
        leg = window[-1]
        step = take_step(field, method, leg.t, leg.t_next, states[-1], past)
        return [step.x_next, *_together(states_at(field, step, wanted), wanted)]

    _, pulled = mx.vjp(step, [*(leg.x for leg in window), *weights.leaves], cotangents)
    return pulled


def time_gradients_of(
    problem: Problem, xs: mx.array, back: mx.array, cotangents: mx.array
) -> mx.array:
    """Gradients in the times, given those in x0 that came `back` from later states."""
    # A start that comes later is one that lies further back.
    moved = mx.concatenate([-back[None], cotangents[1:]])
    return time_gradients(problem.field, problem.times, xs, moved)


def backsolve(
    problem: Problem, weights: "Weights", legs: list[Leg], xs: mx.array, cotangents: mx.array
) -> tuple[mx.array, list[mx.array]]:
    """Solve da/dt = -(df/dx)^T a back in time, adding the cotangents of states on the way."""
    slope, times = problem.field, problem.times
    state = [mx.zeros_like(slope.x0), [mx.zeros_like(w) for w in weights.leaves]]
    # The norm of an error is a mean over all numbers. That of the weights counts for nothing; with
    # this factor the others count as if they were alone.
    size = 2 * slope.x0.size
    factor = math.sqrt(size / (size + sum(w.size for w in weights.leaves)))
    rtol, atol = (
        (*(2 * [[factor * a for a in each]]), [b for _ in weights.leaves])
        for each, b in zip(problem.tolerances, (0.0, 1e30), strict=True)
    )

    def augmented(t: mx.array, state: Any) -> Any:
        x, a, _ = state

        def f(x: mx.array, *leaves: mx.array) -> list[mx.array]:
            return [slope.with_args(weights.bind(leaves))(t, x)]

        (v,), pulled = mx.vjp(f, [slope.pack(x), *weights.leaves], [slope.pack(a)])
        return _leaves(slope.tree(v)), _leaves(slope.tree(-pulled[0])), [-g for g in pulled[1:]]

    a, in_weights = state
    for k in reversed(range(1, len(times))):
        a = a + cotangents[k]
        there, here = times[k - 1], times[k]
        start = (_leaves(slope.tree(xs[k])), _leaves(slope.tree(a)), in_weights)
        grid = None if problem.ends is None else _grid_back(problem.ends, here, there)
        back = prepare(
            augmented,
            start,
            [here, there],
            (),
            problem.call.method,
            rtol,
            atol,
            None,
            grid,
            problem.max_steps,
            problem.control,
            rms,
        )
        solution = collect(back, back.field.x0, settled_steps(back.steps(back.field.x0)))
        _, a, in_weights = tree_map(lambda xs: xs[-1], solution.xs)
        a = slope.pack(a)
        a, in_weights = settled((a, in_weights))
    return a, in_weights


def _grid_back(ends: list[float], here: float, there: float) -> list[float]:
    """Steps from `here` back to `there` between the ends of those that led forward."""
    tiny = 1e-6 * abs(here - there)
    inner = between(ends[::-1], here, there)
    return [here, *(t for t in inner if min(abs(t - here), abs(t - there)) > tiny), there]


class Weights:
    """The arrays in the user's arguments that gradients are taken in."""

    def __init__(self, args: tuple):
        self.args = args
        self.trees = tree_map(
            lambda leaf: leaf.trainable_parameters() if isinstance(leaf, nn.Module) else leaf,
            tuple(args),
            is_leaf=_is_module,
        )
        self.leaves = [leaf for leaf in _leaves(self.trees) if _is_weight(leaf)]

    def bind(self, leaves: Sequence[mx.array]) -> tuple:
        """The arguments with other arrays; modules are changed in place."""
        rest = iter(leaves)
        trees = tree_map(lambda old: next(rest) if _is_weight(old) else old, self.trees)
        return tree_map(
            lambda leaf, new: leaf.update(new) if isinstance(leaf, nn.Module) else new,
            tuple(self.args),
            trees,
            is_leaf=_is_module,
        )

    def restore(self) -> None:
        """Give modules their arrays back."""
        self.bind(self.leaves)

    def with_leaves(self, leaves: Sequence[mx.array]) -> "Weights":
        """The same arguments, with other arrays."""
        other = copy.copy(self)
        other.leaves = list(leaves)
        return other

    def tree(self, gradients: Sequence[mx.array]) -> tuple:
        """Gradients in the form of the arguments."""
        rest = iter(gradients)
        return tree_map(lambda old: next(rest) if _is_weight(old) else None, self.trees)


def _is_module(tree: Any) -> bool:
    return isinstance(tree, nn.Module)


def _is_weight(leaf: Any) -> bool:
    return isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)


def _leaves(tree: Any) -> list[Any]:
    return [leaf for _, leaf in tree_flatten(tree)]


def noted(steps: Iterable[Step], legs: list[Leg]) -> Iterator[Step]:
    """The steps as they come; the accepted ones are noted down."""
    for step in steps:
        if step.accepted:
            legs.append(Leg(step.t, step.t_next, step.x))
        yield step


def settled(tree: Any) -> Any:
    """The arrays of a tree, evaluated and without what led to them.

    Where a transformation is under way they are copies, which have no derivatives.
    """
    if not tracing():
        mx.eval(tree)
        return tree

    def copy(x: Any) -> Any:
        return mx.array(as_numpy(x), dtype=x.dtype) if isinstance(x, mx.array) else x

    return tree_map(copy, tree)


def settled_steps(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps as they come; inside `mx.grad`, the next starts afresh from the numbers of each."""
    for step in steps:
        if tracing():
            step.x_next, step.k_next, step.slopes = settled((step.x_next, step.k_next, step.slopes))
        yield step


def _together(pieces: list[mx.array], wanted: list[float]) -> list[mx.array]:
    """The pieces as one array, none where no times are wanted."""
    return [mx.concatenate(pieces)] if wanted else []


def _scalar(value: Any) -> mx.array:
    check_returned(value, "loss(xs)")
    if value.size != 1:
        raise ValueError(f"loss(xs) returned shape {value.shape}; expected a scalar")
    return value.reshape(())


ADJOINTS: dict[str, Adjoint] = {
    "discrete": Adjoint(discrete, needs_legs=True),
    "backsolve": Adjoint(backsolve, needs_legs=False),
}
