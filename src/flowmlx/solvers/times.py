"""Derivatives in the times of a solve, which are host numbers everywhere else."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from flowmlx.solvers.inputs import Field
from flowmlx.solvers.stepper import Time
from flowmlx.solvers.tracing import is_traced


def time_gradients(
    field: Field, times: Sequence[Time], xs: mx.array, cotangents: mx.array
) -> mx.array:
    """Derivatives (n,) of a function of the states `xs` at `times`, from its `cotangents` in them.

    A state moves with its time as the slope there says. Exact for the solution of the equation, so
    as exact here as the solve is.
    """
    slopes = mx.stack([field(t, x) for t, x in zip(times, xs, strict=True)])
    return mx.sum((cotangents * slopes).reshape(len(xs), -1), axis=1)


def with_outputs(
    field: Field, xs: mx.array, times: Sequence[float], ts: Any
) -> tuple[mx.array, mx.array]:
    """The first of the times `ts`, which are `times` on the host, and the states there.

    To `mx.grad` both are functions of `ts` where that is an mx.array.
    """
    if not _is_differentiable(ts):
        return field.time(times), xs
    ts = ts[: len(times)]
    return ts.astype(field.time_dtype), with_times(field, xs, times, ts, sign=1)


def with_times(
    field: Field, xs: mx.array, times: Sequence[Time], ts: Any, *, sign: int
) -> mx.array:
    """`xs`, but to MLX's derivatives also functions of the times `ts`, an mx.array; no cost else.

    `times`: the same on the host. `sign`: 1 for states that the flow has at these times, -1 for one
    to start from: a start that comes later is one that lies further back.
    """
    if not _is_differentiable(ts):
        return xs
    if is_traced(ts):
        return moved(field, xs, times, ts, sign=sign)

    # MLX may have forgotten that it differentiates ts: then this gives first derivatives.
    unchanged: Any = mx.custom_function(lambda xs, ts: xs)

    @unchanged.vjp
    def _(primals, cotangents, _):
        xs, ts = primals
        return cotangents, sign * time_gradients(field, times, xs, cotangents).astype(ts.dtype)

    return unchanged(xs, ts)


def moved(
    field: Field, xs: mx.array, times: Sequence[Time], ts: mx.array, *, sign: int
) -> mx.array:
    """As `with_times`, by a step of the midpoint rule from the one time to the other.

    It has no length, but derivatives: the first and second ones are those of the flow.
    """
    late = (ts - mx.stop_gradient(ts)).astype(field.time_dtype)
    length = sign * late.astype(xs.dtype).reshape(-1, *(1,) * (xs.ndim - 1))

    def slopes(xs: mx.array, late: mx.array) -> mx.array:
        now = [field.time(t) + late[k] for k, t in enumerate(times)]
        return mx.stack([field(t, x) for t, x in zip(now, xs, strict=True)])

    middle = xs + length / 2 * slopes(xs, late if sign < 0 else 0 * late)
    return xs + length * slopes(middle, late / 2)


def _is_differentiable(ts: Any) -> bool:
    return isinstance(ts, mx.array) and mx.issubdtype(ts.dtype, mx.floating)
