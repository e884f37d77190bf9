"""The time in a step at which a function of the state changes sign."""

import math
from collections.abc import Callable

import mlx.core as mx

from flowmlx.solvers.arrays import check_returned
from flowmlx.solvers.inputs import Field
from flowmlx.solvers.steps import Step, finish, interpolate, read


def find_event(event: Callable[..., mx.array], field: Field, step: Step) -> float | None:
    """Return the first time found past the zero of event(t, x, *args) in `step`, None without one.

    Only a change of sign between the ends of the step counts; it is halved down to the precision of
    the times that the field sees, on the method's dense output.
    """

    def value(t: float, x: mx.array) -> float:
        result = event(field.time(t), field.tree(x), *field.args)
        if not isinstance(result, int | float):
            check_returned(result, "event(t, x)")
        result = mx.array(result)
        if result.size != 1:
            raise ValueError(f"event(t, x) returned shape {result.shape}; expected a scalar")
        if result.dtype == mx.bool_:
            raise ValueError(
                "event(t, x) returned a bool; expected a number that changes its sign, such as "
                "x[0] - 0.5 for x[0] < 0.5"
            )
        number = read(result.reshape(()))
        if math.isnan(number):
            raise ValueError(f"event(t, x) returned NaN at t={t:.6g}; expected a number")
        return number

    before, after = step.t, step.t_next
    start = value(before, step.x)
    if start == 0 or start * value(after, step.x_next) > 0:
        return None
    finish(field, step)
    eps = float(mx.finfo(field.time_dtype).eps)
    while abs(after - before) > eps * max(abs(before), abs(after)):
        middle = (before + after) / 2
        crossed = start * value(middle, interpolate(step, [middle])[0]) <= 0
        before, after = (before, middle) if crossed else (middle, after)
    return after
