"""The loops over steps: of those that are told, and of those that errors decide on."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from flowmlx.solvers import failures
from flowmlx.solvers.arrays import check_returned, describe
from flowmlx.solvers.control import (
    STRETCH,
    Pace,
    answer_rate,
    choose,
    error_ratios,
    first_step,
    shortest_step,
    unresolved,
)
from flowmlx.solvers.failures import SolverError
from flowmlx.solvers.inputs import Prompt, spread
from flowmlx.solvers.problem import Problem
from flowmlx.solvers.stepper import Point, Slope, Step, Stepper, Time
from flowmlx.solvers.tracing import read, tracing

# (change, x, x_next) -> the norm of a change in the state from x to x_next.
Size = Callable[[mx.array, mx.array, mx.array], mx.array]


class Clock(Protocol):
    """Whose time goes by in the steps: that of all samples together, or of each by itself.

    Times, errors and flags are floats and bools in the one case, arrays (batch,) in the other.
    `active`: where there are steps to take.
    """

    active: Any

    @property
    def running(self) -> bool:
        """Whether there are steps to take anywhere."""
        ...

    def numbers(self, value: float) -> Time:
        """A number that all have."""
        ...

    def size(self, ratios: mx.array) -> mx.array:
        """The norm of the ratios of error to tolerance."""
        ...

    def fail(self, flags: Any, failure: Callable[..., SolverError], *numbers: Time) -> None:
        """End the solve with failure(call, *numbers) where the flag is up."""
        ...

    def follow(self, step: Step, memory: Any, field: Slope) -> tuple[Point, Any]:
        """Where the next step starts and what it is told; `memory`: what this one was told."""
        ...


class OneClock:
    """All samples share their steps."""

    def __init__(self, problem: Problem):
        self.norm, self.call, self.active = problem.norm, problem.call, True

    @property
    def running(self) -> bool:
        """Whether there are steps to take."""
        return self.active

    def numbers(self, value: float) -> float:
        """That number."""
        return value

    def size(self, ratios: mx.array) -> mx.array:
        """The user's norm."""
        return check_returned(self.norm(ratios), "norm(ratios)", ())

    def fail(self, flags: bool, failure: Callable[..., SolverError], *numbers: float) -> None:
        """Raise the failure."""
        if flags:
            raise failure(self.call, *numbers)

    def follow(self, step: Step, memory: Any, field: Slope) -> tuple[Point, Any]:
        """The end of the step, or its start once more."""
        return (step.end, step.memory) if step.accepted else (step.start, memory)


def steps_of(problem: Problem, x: mx.array) -> Iterator[Step]:
    """The steps from x at the first time to the last, taken one by one."""
    if problem.ends is None:
        return adaptive_steps(problem, x, OneClock(problem))
    return fixed_steps(problem, problem.ends, x)


def fixed_steps(problem: Problem, ends: list[float], x: mx.array) -> Iterator[Step]:
    """Yield the steps between the times `ends`."""
    field, method = problem.field, problem.method
    start, memory = Point(ends[0], x), method.start(problem.times, x)
    for n, t_next in enumerate(ends[1:]):
        if n == problem.max_steps:
            dt = t_next - start.t
            raise failures.out_of_steps(problem.call, start.t, dt, max_steps=n, end=ends[-1])
        step = method.step(field, start, t_next, memory)
        if n == 0:
            _check(step, method, start.x)
        yield step
        start, memory = step.end, step.memory


def adaptive_steps(problem: Problem, x: mx.array, clock: Clock) -> Iterator[Step]:
    """Yield the accepted and rejected steps of a method that estimates its errors.

    Hairer, Norsett & Wanner I, II.4. The one wait for the device in each step is for its error.
    """
    field, method, control = problem.field, problem.method, problem.control
    traced = tracing()  # asked once, as that is some microseconds
    slope, look = (field, read) if traced else (Prompt(field), mx.array.tolist)
    t0, end, order = problem.times[0], problem.times[-1], _order(problem)
    size, step = _size(problem, clock), None
    start, memory = Point(clock.numbers(t0), x), method.start(problem.times, x)
    pace = _first_pace(problem, clock, size, start)
    for n in itertools.count():
        if not clock.running:
            return
        if n == problem.max_steps:
            _run_out(problem, clock, size, start, pace.h, step)
            return
        shortest = shortest_step(start.t, end - t0, field.time_dtype, control)
        h = pace.within(shortest, control.dtmax)
        t_next = choose(abs(end - start.t) <= STRETCH * abs(h), end, start.t + h)
        # A sample that is done or has failed takes a step of length zero.
        step = method.step(slope, start, choose(clock.active, t_next, start.t), memory)
        if n == 0:
            _check(step, method, start.x)
        error = _numbers(look(size(_error(step), start.x, step.end.x)))
        step.accepted = choose(clock.active, error <= 1, False)
        pace = pace.after(step.end.t - start.t, error, step.accepted, control, order)
        yield step
        stuck = choose(step.accepted, False, abs(h) <= shortest)
        clock.fail(stuck, failures.no_step, start.t, h, error)
        done = choose(step.accepted, step.end.t == end, False)
        clock.active = choose(done, False, clock.active)
        start, memory = clock.follow(step, memory, slope)


def _order(problem: Problem) -> int:
    """The power of a step's length that its error goes with."""
    assert problem.method.error_order is not None
    return problem.method.error_order + 1


def _check(step: Any, method: Stepper, x: mx.array) -> None:
    """Refuse what is no step from the state x, of a method of the user's own."""
    if not isinstance(step, Step):
        raise TypeError(
            f"{method.name}.step(...) returned {describe(step)}; expected a solvers.Step, such as "
            "Step(start, Point(t_next, x))"
        )
    expected = [x.shape, x.dtype]
    if [step.end.x.shape, step.end.x.dtype] != expected:
        raise ValueError(
            f"{method.name} steps to a state of {describe(step.end.x)}; expected one like that at "
            f"the start, {describe(x)}"
        )
    if method.error_order is not None and step.error is None:
        raise ValueError(
            f"{method.name} has error_order={method.error_order}, and its step no error; expected "
            "Step(..., error=...), or error_order=None"
        )


def _error(step: Step) -> mx.array:
    assert step.error is not None
    return step.error


def _numbers(read: Any) -> Time:
    """What was read of an array: a float, or a list as a NumPy array."""
    return np.array(read) if isinstance(read, list) else read


def _size(problem: Problem, clock: Clock) -> Size:
    tolerance = spread(problem.tolerances, problem.field)
    return lambda change, x, x_next: clock.size(error_ratios(change, x, x_next, tolerance))


def _first_pace(problem: Problem, clock: Clock, size: Size, start: Point) -> Pace:
    """The pace that a solve starts with; ends it where it cannot start."""
    field, control = problem.field, problem.control
    t0, end = problem.times[0], problem.times[-1]
    _check_resolution(problem, clock, size, start, clock.numbers(0.0))
    if control.first_step is None:
        k, order = start.slope(field), _order(problem)
        h = first_step(field, start.t, end, start.x, k, order, lambda y: size(y, start.x, start.x))
    else:
        h = clock.numbers(math.copysign(control.first_step, end - t0))
    clock.fail(~np.isfinite(h), failures.not_finite_at_start, start.t)
    one = clock.numbers(1.0)
    return Pace(h, (one, one), clock.numbers(control.max_factor))


def _check_resolution(problem: Problem, clock: Clock, size: Size, at: Point, h: Time) -> None:
    """End the solve where the tolerance is less than the rounding error of the state."""
    failure = functools.partial(failures.below_rounding, dtype=at.x.dtype)
    clock.fail(unresolved(at.x, problem.tolerances[0], size), failure, at.t, h)


def _run_out(
    problem: Problem, clock: Clock, size: Size, at: Point, h: Time, step: Step | None
) -> None:
    """End the solve, of which `step` was the last allowed, at a point with a step of h to come."""
    _check_resolution(problem, clock, size, at, h)
    if clock.running and step is not None:
        rate = answer_rate(problem.field, at.t, at.x, _error(step))
        failure = functools.partial(
            failures.out_of_steps, max_steps=problem.max_steps, end=problem.times[-1]
        )
        clock.fail(clock.active, failure, at.t, h, rate)
