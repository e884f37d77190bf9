"""odeint: the loop, output times, limits, statistics."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from flowmlx.solvers import failures
from flowmlx.solvers.arrays import check_callable, check_returned, entry
from flowmlx.solvers.control import (
    DEFAULT_CONTROL,
    STRETCH,
    Controller,
    Norm,
    answer_rate,
    error_ratios,
    first_step,
    rms,
    shortest_step,
    unresolved,
)
from flowmlx.solvers.events import Event, find_event, with_event
from flowmlx.solvers.exponential import Exponential, check_direction, exponential_steps
from flowmlx.solvers.failures import Call, SolverError, Status
from flowmlx.solvers.inputs import (
    Field,
    check_control,
    check_grid,
    check_max_steps,
    check_times,
    check_tolerance,
    look_up,
    seen,
    spread,
)
from flowmlx.solvers.solution import Dense, Solution, Stats, finite_steps
from flowmlx.solvers.steps import Step, finish, interpolate, rk_step, slopes_of, take_step
from flowmlx.solvers.tableaus import Adams, Tableau
from flowmlx.solvers.times import with_outputs, with_times
from flowmlx.solvers.tracing import all_finite, begin, count_finite, read, started


def odeint(
    field: Callable[..., Any],
    x0: Any,
    ts: Any,
    *,
    method: str | Exponential = "dopri5",
    rtol: Any = 1e-4,
    atol: Any = 1e-4,
    step_size: float | None = None,
    grid: Sequence[float] | np.ndarray | None = None,
    max_steps: int = 10_000,
    throw: bool = True,
    args: tuple = (),
    control: Controller = DEFAULT_CONTROL,
    norm: Norm = rms,
    dense: bool = False,
    event: Event | None = None,
    progress: Callable[[float], None] | None = None,
) -> Solution:
    """Integrate dx/dt = field(t, x, *args) from ts[0] to ts[-1] and return the states at `ts`.

    `field` gets t as a scalar array and x with the shapes of `x0`, and returns dx/dt with the same
    shapes and dtypes; it is never evaluated outside the interval. `x0`: a floating-point array or a
    tree (dict, list, tuple, NamedTuple) of them. `ts`: two or more times, increasing or decreasing.
    `method`: a name in METHODS, or an `Exponential` for the path at hand. The adaptive ones choose
    steps so that `norm` of the local error over atol + rtol |x| stays below 1 (`rtol`, `atol`:
    numbers, or trees like x0 with a number per leaf; `control`: how) and interpolate to the output
    times; the others step from output time to output time. With `step_size` every method takes
    equal steps of at most that size, with `grid` steps between those times, from ts[0] to ts[-1]
    (such as `grids.sine(16)`), and interpolates. `max_steps` bounds accepted plus rejected steps.

    `dense`: keep the steps, so that the solution can be called at any time. `event`: a function
    (t, x, *args) -> scalar; where it first changes sign between the ends of a step the solve stops
    with status "event", and the last of the returned times and states are those of the event (0 at
    the start of a step is no change). Gradients go through the time of the event, too.
    `progress`: called after each step with the fraction of the interval done.

    `mx.grad` and `mx.vjp` go through a solve, to x0, to `args`, to what the field closes over and,
    where `ts` is an mx.array, to the times, with the lengths of steps held fixed. The field may
    differentiate inside. They keep all that the steps computed; `odeint_adjoint` does not.

    A solve of fixed steps without event can be compiled and vmapped as a whole; what is not finite
    is then returned as it is.

    Returns Solution(ts, xs, stats, status); xs[0] is x0. Raises ValueError or TypeError for bad
    arguments and SolverError when the solve cannot be finished; `throw=False` returns what there is
    instead, all of it finite, with the status that says why.
    """
    problem = prepare(
        field, x0, ts, args, method, rtol, atol, step_size, grid, max_steps, control, norm
    )
    for name, option in (("event", event), ("progress", progress)):
        if option is not None:
            check_callable(option, name, "or None")
    slope, times = problem.field, problem.times
    start = entry(with_times(slope, slope.x0[None], times[:1], ts[:1], sign=-1), 0)
    return collect(problem, start, problem.steps(start), ts, throw, dense, event, progress)


@dataclass(frozen=True)
class Problem:
    """A solve, checked and ready.

    `ends`: of its steps, None where errors decide on them. `tolerances`: rtol and atol of each leaf
    of the state.
    """

    field: Field
    method: Tableau | Adams | Exponential
    times: list[float]
    ends: list[float] | None
    tolerances: tuple[list[float], list[float]]
    norm: Norm
    control: Controller
    max_steps: int
    call: Call

    def steps(self, x: mx.array) -> Iterator[Step]:
        """The steps from x at the first time to the last, taken one by one."""
        if self.ends is None:
            return adaptive_steps(self, x)
        if isinstance(self.method, Exponential):
            return exponential_steps(
                self.field, self.method, self.ends, x, self.max_steps, self.call
            )
        return fixed_steps(self, self.method, self.ends, x)


def prepare(
    field: Callable[..., Any],
    x0: Any,
    ts: Any,
    args: tuple,
    method: str | Exponential,
    rtol: Any,
    atol: Any,
    step_size: float | None,
    grid: Sequence[float] | np.ndarray | None,
    max_steps: int,
    control: Controller,
    norm: Norm,
) -> Problem:
    """Check the arguments of `odeint`."""
    chosen = method if isinstance(method, Exponential) else look_up(method)
    slope = Field(field, x0, args)
    check_control(control)
    check_callable(norm, "norm", "of the ratios of error to tolerance, such as solvers.rms")
    times = check_times(ts, slope.time_dtype)
    max_steps = check_max_steps(max_steps)
    ends = check_grid(times, step_size, grid, slope.time_dtype, max_steps)
    tolerances = check_tolerance(rtol, atol, slope)
    adaptive = isinstance(chosen, Tableau) and chosen.error
    if ends is None and not (adaptive and slope.x0.size):  # nothing has no error
        ends = times
    if isinstance(chosen, Exponential):
        check_direction(chosen, times)
    name = method.name if isinstance(method, Exponential) else method
    call = Call("odeint", name, name)
    return Problem(slope, chosen, times, ends, tolerances, norm, control, max_steps, call)


def collect(
    problem: Problem,
    start: mx.array,
    steps: Iterable[Step],
    ts: Any = None,
    throw: bool = True,
    dense: bool = False,
    event: Event | None = None,
    progress: Callable[[float], None] | None = None,
) -> Solution:
    """Take the steps from `start` and make them a solution."""
    field, times, call = problem.field, problem.times, problem.call
    record, kept, status, failure = _Record(field, times, start), [], Status.SUCCESS, None
    try:
        for step in steps:
            if not step.accepted:
                record.rejected += 1
                continue
            stop = find_event(event, field, step) if event else None
            record.add(step, stop)
            if dense:
                kept.append(finish(field, step))
            if progress:
                progress((step.t_next - times[0]) / (times[-1] - times[0]))
            if stop is not None:
                status = Status.EVENT
                break
    except SolverError as error:
        failure = error
    xs = mx.concatenate(record.pieces)
    # What is not finite stays so: all is well if the states in and after the last step are.
    tail = mx.concatenate(record.pieces[-2:])
    finite = len(xs) if all_finite(tail) else count_finite(xs)
    if finite < len(xs):
        last = record.reached[max(finite - 1, 0)]
        failure = failure or failures.not_finite_after(call, last, max(record.sizes))
        kept = finite_steps(kept)
    if failure is not None:
        if throw:
            raise failure
        status = failure.status
    reached, end = record.reached[:finite], kept[-1].t_next if kept else times[0]
    if event and status == Status.EVENT:
        *reached, end = reached
        before, last = with_outputs(field, xs[:-1], reached, ts), with_event(event, field, end, xs)
        out, xs = mx.concatenate([before[0], last[0]]), mx.concatenate([before[1], last[1]])
    else:
        out, xs = with_outputs(field, xs[:finite], reached, ts)
    states = Dense(field, kept, times[0], end) if dense else None
    return Solution(out, field.tree(xs), record.stats(), status, states)


def fixed_steps(
    problem: Problem, method: Tableau | Adams, ends: list[float], x: mx.array
) -> Iterator[Step]:
    """Yield the steps between the times `ends`."""
    field, past = problem.field, []
    order = slopes_of(method)
    for n, (t, t_next) in enumerate(pairwise(ends)):
        if n == problem.max_steps:
            raise failures.out_of_steps(problem.call, n, t, t_next - t, ends[-1])
        if not past or past[0][0] != t:
            past = [(t, field(t, x)), *past][:order]
        step = take_step(field, method, t, t_next, x, past)
        yield step
        x = step.x_next
        if step.k_next is not None:
            past = [(t_next, step.k_next), *past][:order]


def adaptive_steps(problem: Problem, x: mx.array) -> Iterator[Step]:
    """Yield the accepted and rejected steps of an embedded method.

    Hairer, Norsett & Wanner I, II.4. The one wait for the device in each step is for its error.
    """
    field, tableau, control, call = problem.field, problem.method, problem.control, problem.call
    assert isinstance(tableau, Tableau)
    tolerance, slope = spread(problem.tolerances, field), started(field)

    def size(change: mx.array, x: mx.array, x_next: mx.array) -> mx.array:
        ratios = error_ratios(change, x, x_next, tolerance)
        return check_returned(problem.norm(ratios), "norm(ratios)", ())

    t, end, order = problem.times[0], problem.times[-1], tableau.error_order + 1
    span = end - t
    if unresolved(x, problem.tolerances[0], size):
        raise failures.below_rounding(call, t, 0.0, x.dtype)
    k = field(t, x)
    if control.first_step is None:
        h = float(first_step(field, t, end, x, k, order, lambda y: size(y, x, x)))
    else:
        h = math.copysign(control.first_step, span)
    if not math.isfinite(h):
        raise failures.not_finite_at_start(call, t)
    errors, limit = (1.0, 1.0), control.max_factor
    for _ in range(problem.max_steps):
        shortest = shortest_step(t, span, field.time_dtype, control)
        h = math.copysign(min(max(abs(h), shortest), control.dtmax), h)
        t_next = end if abs(end - t) <= STRETCH * abs(h) else t + h
        step = rk_step(slope, tableau, t, t_next, x, k)
        assert step.error is not None
        error = read(size(step.error, x, step.x_next))
        factor = control.factor((error, errors[0], errors[1]), order)
        step.accepted = error <= 1
        yield step
        if not step.accepted:
            if abs(h) <= shortest:
                raise failures.no_step(call, t, h, error)
            h, limit = (t_next - t) * min(factor, control.safety), 1.0
            continue
        if t_next == end:
            return
        h, limit = (t_next - t) * min(factor, limit), control.max_factor
        t, x, k = t_next, step.x_next, step.k_next
        if k is None:
            k = field(t, x)
        errors = (error, errors[0])
    if unresolved(x, problem.tolerances[0], size):
        raise failures.below_rounding(call, t, h, x.dtype)
    assert step.error is not None
    rate = answer_rate(field, t, x, step.error)
    raise failures.out_of_steps(call, problem.max_steps, t, h, end, rate)


class _Record:
    """The states at the output times so far, and the steps that led there."""

    def __init__(self, field: Field, times: list[float], start: mx.array):
        self.field, self.times = field, times
        self.reached, self.pieces = times[:1], [start[None]]
        self.sizes, self.rejected = [], 0

    def add(self, step: Step, stop: float | None) -> None:
        """Take in an accepted step, up to the time `stop` of an event if there is one."""
        wanted = between(self.times, step.t, step.t_next if stop is None else stop)
        if stop is not None:
            # An output time that the field cannot tell from the event's gives way to it.
            here, *others = seen([stop, *wanted], self.field.time_dtype)
            wanted = [t for t, other in zip(wanted, others, strict=True) if other != here]
            wanted.append(stop)
        pieces = states_at(self.field, step, wanted)
        begin(step.x_next, pieces)
        self.reached += wanted
        self.pieces += pieces
        self.sizes.append(abs(step.t_next - step.t))

    def stats(self) -> Stats:
        sizes = self.sizes or [0.0]
        return Stats(self.field.nfe, len(self.sizes), self.rejected, min(sizes), max(sizes))


def between(times: list[float], t: float, t_next: float) -> list[float]:
    """The times in (t, t_next], whichever way they go."""
    sign = 1.0 if times[-1] > times[0] else -1.0

    def count(limit: float) -> int:
        return bisect_right(times, sign * limit, key=lambda time: sign * time)

    return times[count(t) : count(t_next)]


def states_at(field: Field, step: Step, times: list[float]) -> list[mx.array]:
    """States at `times` in (step.t, step.t_next], time first, in up to two pieces."""
    pieces = []
    ends_here = times[-1:] == [step.t_next]
    inside = times[:-1] if ends_here else times
    if inside:
        pieces.append(interpolate(finish(field, step), inside))
    if ends_here:
        pieces.append(step.x_next[None])
    return pieces
