"""Numbers for the host, without harm to what MLX differentiates around a solve.

Evaluating an array drops the graph that led to it, unless MLX knows the array as part of a
transformation (`mx.grad`, `mx.vjp`, `mx.jvp`). A field that differentiates inside itself makes MLX
forget that, and an evaluation in the middle of a solve then cuts the gradient without an error.
So while a transformation is under way `begin` does nothing, and `on_host` and `read` evaluate in a
way that keeps the graph.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

T = TypeVar("T")


def _marked() -> mx.array:
    """An array that MLX takes for part of any transformation that is under way, now or later."""
    kept = []

    def function(x: mx.array) -> mx.array:
        kept.append(x + 0)  # MLX unmarks what the result was made of, and this is not part of it
        return x

    mx.vjp(function, [mx.zeros(())], [mx.zeros(())])
    mx.eval(kept)
    return kept[0]


MARKED = _marked()


def tracing() -> bool:
    """Whether MLX transforms a function around this call: grad, vjp, jvp, vmap or compile."""
    return is_traced(MARKED)


def is_traced(x: mx.array) -> bool:
    """Whether MLX knows `x` as part of a transformation around this call.

    Not to be relied on where it says no: MLX unmarks arrays that a transformation inside of this
    one used. Where it says yes, a mark may also be left from an earlier transformation.
    """
    try:
        mx.async_eval(x + 0)
    except ValueError:  # not allowed for arrays that are transformed
        return True
    return False


def begin(*arrays: Any) -> None:
    """Start work on arrays, so that the graph of a solve does not grow.

    Not while MLX transforms the solve: then the graph is what is wanted.
    """
    if not tracing():
        mx.async_eval(*arrays)


def retained(function: Callable[[], T]) -> T:
    """Call `function`; what it evaluates keeps the graph that led there.

    While MLX calls the vjp of a custom function it keeps all graphs, so it is called as one.
    """
    result = []
    through: Any = mx.custom_function(lambda x: x)

    @through.vjp
    def _(primal, cotangent, _):
        result.append(function())
        return cotangent

    mx.vjp(through, [mx.zeros(())], [mx.zeros(())])
    return result[0]


def on_host(function: Callable[[], T]) -> T:
    """Call `function`, which takes numbers of arrays to the host, without harm to gradients."""
    return retained(function) if tracing() else function()


def read(x: mx.array) -> Any:
    """Numbers of an array, as a float or lists of them; waits for the device.

    Raises ValueError where `mx.compile` or `mx.vmap` traces the solve and there are none yet.
    """
    try:
        return on_host(x.tolist)
    except ValueError as error:
        raise ValueError(
            "mx.compile and mx.vmap cannot trace a solve that decides on its steps or its end by "
            'what it computes; compile the field instead, or take fixed steps: method="rk4", '
            "step_size=..."
        ) from error


def all_finite(x: mx.array) -> bool:
    """Whether all numbers are finite; True where compiling or vmapping leaves none to look at."""
    try:
        return read(mx.all(mx.isfinite(x)))
    except ValueError:
        return True


def count_finite(xs: mx.array) -> int:
    """Number of times before the first whose state is not finite; all of them without one."""
    if all_finite(xs):
        return len(xs)
    flat = xs.reshape(len(xs), math.prod(xs.shape[1:]))
    return int(np.argmin(read(mx.isfinite(flat).all(axis=1))))
