"""odeint_adjoint: a solve inside `mx.grad` whose gradients take little memory."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from flowmlx.solvers.closures import held
from flowmlx.solvers.integrate import collect
from flowmlx.solvers.loops import steps_of
from flowmlx.solvers.methods import look_up
from flowmlx.solvers.options import SolveOptions, complete, takes
from flowmlx.solvers.problem import prepare
from flowmlx.solvers.solution import Solution
from flowmlx.solvers.tracing import is_traced
from flowmlx.solvers.ways_back import (
    Leg,
    look_up_adjoint,
    noted,
    settled,
    settled_steps,
    time_gradients_of,
)
from flowmlx.solvers.weights import Weights

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(SolveOptions)
def odeint_adjoint(
    field: Callable[..., Any],
    x0: Any,
    ts: Any,
    *,
    args: tuple = (),
    adjoint: str = "discrete",
    **options: Unpack[SolveOptions],
) -> Solution:
    """`odeint`, for use inside `mx.grad`: gradients take little memory, through `args` alone.

    The gradients are in `x0`, in `args`, each a tree of arrays and modules (`mlx.nn.Module`), and
    in `ts` where that is an mx.array. `adjoint`: a name in ADJOINTS, the way back, as in
    `odeint_value_and_grad`. The other arguments are those of `odeint`.

    Returns Solution(ts, xs, stats, status). Raises as `odeint` does, ValueError for an unknown
    adjoint, and ValueError where a gradient would be lost without a word: for a field that closes
    over what is differentiated instead of taking it from `args`, for second derivatives and
    for `mx.jvp`.
    """
    chosen = complete(SolveOptions, options)
    way = look_up_adjoint(adjoint, look_up(chosen["method"]))
    problem = prepare(field, x0, ts, args, chosen)
    weights, legs = Weights(args), list[Leg]()
    start, *leaves = settled([problem.field.x0, *weights.leaves])
    apart = weights.with_leaves(leaves)
    try:
        slope = problem.field.with_args(apart.bind(leaves))
        problem = dataclasses.replace(problem, field=slope)
        _refuse_closures(field, slope.args)
        steps = settled_steps(steps_of(problem, start))
        solution = collect(problem, start, noted(steps, legs) if way.needs_legs else steps)
    finally:
        weights.restore()
    xs = settled(slope.join(solution.xs))

    def way_back(primals: Sequence[mx.array], cotangents: mx.array) -> list[mx.array]:
        cotangents, present = settled(cotangents), Weights(args)
        try:
            back, in_weights = way.sweep(problem, apart, legs, xs, cotangents)
            in_times = mx.zeros_like(primals[1])
            if isinstance(ts, mx.array):
                late = time_gradients_of(problem, xs, back, cotangents)
                in_times = settled(late.astype(primals[1].dtype))
        finally:
            present.restore()
        return [back + cotangents[0], in_times, *in_weights]

    times = ts if isinstance(ts, mx.array) else solution.ts
    inputs = [slope.x0, times, *weights.leaves]
    return Solution(solution.ts, slope.tree(_with_vjp(xs, way_back, inputs)), *solution[2:])


def _with_vjp(value: mx.array, way_back: Callable, inputs: list[mx.array]) -> mx.array:
    """`value`, but to `mx.grad` a function of `inputs` whose first derivatives `way_back` gives."""
    first: Any = mx.custom_function(lambda *inputs: value)

    @first.vjp
    def _(primals, cotangents, _):
        gradients = way_back(primals, cotangents)
        second: Any = mx.custom_function(lambda *inputs: gradients)
        second.vjp(_refuse_more)
        second.jvp(_refuse_more)
        return second(*primals, cotangents)

    first.jvp(_refuse_more)
    return first(*inputs)


def _refuse_more(*_: Any) -> None:
    raise ValueError(
        "odeint_adjoint has first derivatives by mx.grad and mx.vjp only; for second ones, as by "
        "mx.grad inside of mx.grad, and for mx.jvp write odeint instead"
    )


def _refuse_closures(field: Callable, args: tuple) -> None:
    """Refuse arrays that MLX differentiates, in closures or as complex numbers and objects in args.

    MLX forgets that it does so once the field has differentiated inside, so it is asked before.
    """
    # What a module in args holds besides its trainable parameters is fixed.
    inside = held(args, whole=lambda thing: isinstance(thing, nn.Module))
    for name, x in itertools.chain(held(field), inside):
        if isinstance(x, mx.array) and is_traced(x):
            raise ValueError(
                "odeint_adjoint gives gradients to x0, to ts and to the real arrays and trainable "
                f"parameters in args alone, and field uses {repr(name) if name else 'an array'}, "
                "which mx.grad differentiates. Let the field take it as an argument: "
                "odeint_adjoint(lambda t, x, net: net(t, x), x0, ts, args=(net,)); or write odeint"
            )
