"""The time in a step at which a function of the state changes sign."""

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from flowmlx.solvers.arrays import check_returned, entry
from flowmlx.solvers.dense import interpolate
from flowmlx.solvers.inputs import Field, seen
from flowmlx.solvers.stepper import Step
from flowmlx.solvers.times import moved
from flowmlx.solvers.tracing import read, tracing

# What the user hands over: (t, x, *args) -> scalar.
Event = Callable[..., mx.array]


def find_event(event: Event, field: Field, step: Step) -> float | None:
    """Return a time just past the zero of event(t, x, *args) in `step`, None without one.

    Only a change of sign between the ends of the step counts. The step is halved, with states from
    the method's dense output, until the ends are as close as times that the field sees can be. The
    result differs from the start of the step by at least one such time.
    """

    def value(t: float, x: mx.array) -> float:
        number = read(_value(event, field, field.time(t), x))
        if math.isnan(number):
            raise ValueError(f"event(t, x) returned NaN at t={t:.6g}; expected a number")
        return number

    before, after = step.start.t, step.end.t
    start = value(before, step.start.x)
    if start == 0 or start * value(after, step.end.x) > 0:
        return None
    eps = float(mx.finfo(field.time_dtype).eps)
    # Times near 0 could be halved for long: what is left of a step is nothing next to its length.
    smallest = eps**2 * abs(after - before)
    while abs(after - before) > max(eps * max(abs(before), abs(after)), smallest):
        middle = (before + after) / 2
        crossed = start * value(middle, interpolate(field, step, [middle])[0]) <= 0
        before, after = (before, middle) if crossed else (middle, after)
    here = seen(step.start.t, field.time_dtype)
    if seen(after, field.time_dtype) == here:
        after = float(np.nextafter(here, here.dtype.type(step.end.t)))
    return after


def with_event(event: Event, field: Field, stop: float, xs: mx.array) -> tuple[mx.array, mx.array]:
    """The time (1,) and state (1, ...) of an event at `stop`, as functions of what led there.

    `xs`: states up to the event, time first.

    The event moves so that event(t, x(t)) stays 0: dt = -d event / (event_t + event_x v), and the
    state moves along with it (implicit function theorem; Chen, Amos & Nickel 2021, arXiv
    2011.03902, section 3.1). That is a step of Newton's method from `stop`; a second one makes
    second derivatives right as well. The numbers stay as they are: only derivatives are
    added, and where MLX takes none nothing is computed. Raises ValueError for an event without a
    slope in time.
    """
    t, x = field.time(stop), xs[-1:]
    if not tracing():
        return t[None], x

    def at(t: mx.array) -> mx.array:
        return moved(field, x, [stop], t[None], sign=1)

    for _ in range(2):
        t = _newton(event, field, t, entry(at(t), 0), stop)
    return t[None], at(t)


def _newton(event: Event, field: Field, t: mx.array, x: mx.array, stop: float) -> mx.array:
    """A step towards the zero of the event, from (t, x), of which only the derivatives are taken.

    `stop`: t on the host.
    """
    in_time, in_state = mx.grad(lambda t, x: _value(event, field, t, x), argnums=(0, 1))(t, x)
    rate = in_time + mx.sum(in_state * field(t, x))
    if read(rate) == 0:
        raise ValueError(
            f"event(t, x) does not change with time at t={stop:.6g}, as far as MLX can tell, and "
            "the time of the event then has no gradient; expected MLX operations with a slope "
            "there, such as x[0] - 0.5 instead of mx.sign(x[0] - 0.5) or x[0].item() - 0.5"
        )
    now = _value(event, field, t, x)
    return t + ((mx.stop_gradient(now) - now) / rate).astype(t.dtype)


def _value(event: Event, field: Field, t: mx.array, x: mx.array) -> mx.array:
    """The event as a scalar, checked."""
    result = event(t, field.tree(x), *field.args)
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
    return result.reshape(())
