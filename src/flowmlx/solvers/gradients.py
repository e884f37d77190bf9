"""A loss of the states of a solve, with its gradients in little memory; see `ways_back`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx

from flowmlx.solvers.arrays import check_callable, check_returned
from flowmlx.solvers.integrate import collect
from flowmlx.solvers.loops import steps_of
from flowmlx.solvers.methods import look_up
from flowmlx.solvers.options import SolveOptions, complete, takes
from flowmlx.solvers.problem import prepare
from flowmlx.solvers.solution import Solution
from flowmlx.solvers.tracing import tracing
from flowmlx.solvers.ways_back import Leg, look_up_adjoint, noted, time_gradients_of
from flowmlx.solvers.weights import Weights

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Gradients(NamedTuple):
    """Gradients in `x0` and `args`, trees like them, and in the times `ts`, (n,).

    In `args`, a module is its trainable parameters, and a leaf that is no floating-point array is
    None. `ts` is None where the times were no mx.array.
    """

    x0: Any
    ts: mx.array | None
    args: tuple


@takes(SolveOptions)
def odeint_value_and_grad(
    loss: Callable[[Any], mx.array],
    field: Callable[..., Any],
    x0: Any,
    ts: Any,
    *,
    args: tuple = (),
    adjoint: str = "discrete",
    **options: Unpack[SolveOptions],
) -> tuple[mx.array, Gradients, Solution]:
    """Value and gradients of `loss(xs)`, a scalar, for the states `xs` of `odeint` at `ts`.

    The gradients are in `x0`, `ts` and `args`, each a tree of arrays and modules (`mlx.nn.Module`),
    and in nothing that field or loss close over. Inside `mx.grad` write `odeint_adjoint` instead.
    The other arguments are those of `odeint`. `adjoint`: a name in ADJOINTS.

        discrete     the gradient of the numbers that the solve computed, as `mx.grad` gives it with
                     the lengths of steps held fixed. Keeps the states between steps, and the slopes
                     that a multistep method remembers. Takes the steps again on the way back, one
                     at a time.
        backsolve    solves the adjoint equation back from the last time, together with x, starting
                     anew from the state at each of `ts` (Chen et al. 2018, arXiv 1806.07366, Eq.
                     3-5). Keeps nothing else, and is as exact as that solve, which has the same
                     tolerances; errors of the gradients in `args` do not shorten its steps (Kidger
                     et al. 2021, arXiv 2009.09457). For methods in METHODS, which solve any
                     equation.

    Derivatives in times are those of the flow, the slope at a state.

    Returns (value, Gradients(x0, ts, args), solution). Raises as `odeint` does, and ValueError for
    an unknown adjoint, a loss that is not a scalar, or inside `mx.grad` and the like.
    """
    chosen = complete(SolveOptions, options)
    way = look_up_adjoint(adjoint, look_up(chosen["method"]))
    if tracing():
        raise ValueError(
            "odeint_value_and_grad takes gradients itself, and mx.grad, mx.vmap or mx.compile "
            "around it would find none; write odeint_adjoint(field, x0, ts, args=...) there instead"
        )
    check_callable(loss, "loss", "of the states, loss(xs)")
    problem = prepare(field, x0, ts, args, chosen)
    slope, weights = problem.field, Weights(args)
    if not slope.x0.size:  # of a loss of nothing; MLX's gradient of it ends the process
        raise ValueError(f"x0 has shapes {slope.shapes}; expected at least one sample")
    legs: list[Leg] = []
    steps = steps_of(problem, slope.x0)
    solution = collect(problem, slope.x0, noted(steps, legs) if way.needs_legs else steps)
    xs = slope.join(solution.xs)
    value, cotangents = mx.value_and_grad(lambda xs: _scalar(loss(slope.tree(xs))))(xs)
    mx.eval(value, cotangents)
    try:
        back, in_weights = way.sweep(problem, weights, legs, xs, cotangents)
    finally:
        weights.restore()
    in_times = (
        time_gradients_of(problem, xs, back, cotangents) if isinstance(ts, mx.array) else None
    )
    gradients = Gradients(slope.tree(back + cotangents[0]), in_times, weights.tree(in_weights))
    return value, gradients, solution


def _scalar(value: Any) -> mx.array:
    check_returned(value, "loss(xs)")
    if value.size != 1:
        raise ValueError(f"loss(xs) returned shape {value.shape}; expected a scalar")
    return value.reshape(())
