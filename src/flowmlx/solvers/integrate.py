"""odeint: output times, statistics, events."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from flowmlx.solvers import failures
from flowmlx.solvers.arrays import check_callable, entry
from flowmlx.solvers.dense import interpolate, solution_inside
from flowmlx.solvers.events import Event, find_event, with_event
from flowmlx.solvers.failures import SolverError, Status
from flowmlx.solvers.inputs import Field, seen
from flowmlx.solvers.loops import steps_of
from flowmlx.solvers.options import SolveOptions, complete, takes
from flowmlx.solvers.problem import Problem, prepare
from flowmlx.solvers.solution import Dense, Solution, Stats, finite_steps
from flowmlx.solvers.stepper import Step
from flowmlx.solvers.times import with_outputs, with_times
from flowmlx.solvers.tracing import all_finite, begin, count_finite

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(SolveOptions)
def odeint(
    field: Callable[..., Any],
    x0: Any,
    ts: Any,
    *,
    args: tuple = (),
    throw: bool = True,
    dense: bool = False,
    event: Event | None = None,
    progress: Callable[[float], None] | None = None,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Integrate dx/dt = field(t, x, *args) from ts[0] to ts[-1] and return the states at `ts`.

    `field` gets t as a scalar array and x with the shapes of `x0`, and returns dx/dt with the same
    shapes and dtypes; it is never evaluated outside the interval. `x0`: a floating-point array or a
    tree (dict, list, tuple, NamedTuple) of them. `ts`: two or more times, increasing or decreasing.

    `method` (default "dopri5"): a name in METHODS, or a `Stepper`, such as an `Exponential` for a
    known path, or one of your own. Methods with an error estimate choose their step sizes and
    interpolate to the output times; the others take one step from each output time to the next.
    `rtol`, `atol` (1e-4): an adaptive step is accepted if the `norm` of error / (atol + rtol |x|)
    is at most 1. They are numbers, or trees like x0 with a number for each leaf.
    `norm` (`rms`): norm of these ratios. `control` (`Controller()`): how the ratio determines the
    next step size.
    `step_size`: every method takes equal steps of at most this length. `grid`: every method steps
    from each of these times to the next, from ts[0] to ts[-1], such as `grids.sine(16)`. With
    either, states between the steps are interpolated.
    `max_steps` (10,000): largest number of steps, accepted and rejected together.

    `dense`: keep the steps, so that the solution can be called at any time. `event`: a function
    (t, x, *args) -> scalar. The solve stops, with the status "event", at the first time where this
    function changes its sign within a step; a value of 0 at the start of a step does not count. The
    last of the returned times and states are then those of the event. `progress`: called after each
    step with the fraction of the interval that is done.

    `mx.grad` and `mx.vjp` differentiate a solve with respect to x0, `args`, arrays that the field
    closes over and, if `ts` is an mx.array, the times; the time of the event has gradients, too.
    Step sizes are treated as constants. The field itself may differentiate. Everything that the
    steps computed is kept for this; `odeint_adjoint` needs less memory.

    A solve with fixed steps and without event can be compiled and vmapped as a whole; states that
    are not finite are then returned without an error.

    Returns Solution(ts, xs, stats, status); xs[0] is x0. Raises ValueError or TypeError for bad
    arguments, and SolverError if the solve cannot be finished. With `throw=False` it returns the
    finite states up to that time instead, with the status that says why.
    """
    problem = prepare(field, x0, ts, args, complete(SolveOptions, options))
    for name, option in (("event", event), ("progress", progress)):
        if option is not None:
            check_callable(option, name, "or None")
    slope, times = problem.field, problem.times
    start = entry(with_times(slope, slope.x0[None], times[:1], ts[:1], sign=-1), 0)
    return collect(problem, start, steps_of(problem, start), ts, throw, dense, event, progress)


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
    record, status, failure = _Record(field, times, start, dense), Status.SUCCESS, None
    try:
        status = _take(steps, record, event, progress)
    except SolverError as error:
        failure = error
    xs = mx.concatenate(record.pieces)
    # What is not finite stays so: all is well if the states in and after the last step are.
    tail = mx.concatenate(record.pieces[-2:])
    finite, kept = len(xs) if all_finite(tail) else count_finite(xs), record.kept
    if finite < len(xs):
        last = record.reached[max(finite - 1, 0)]
        failure = failure or failures.not_finite_after(call, last, max(record.sizes))
        kept = finite_steps(field, kept)
    if failure is not None:
        if throw:
            raise failure
        status = failure.status
    reached, end = record.reached[:finite], kept[-1].end.t if kept else times[0]
    if event and status == Status.EVENT:
        *reached, end = reached
        before, last = with_outputs(field, xs[:-1], reached, ts), with_event(event, field, end, xs)
        out, xs = mx.concatenate([before[0], last[0]]), mx.concatenate([before[1], last[1]])
    else:
        out, xs = with_outputs(field, xs[:finite], reached, ts)
    states = Dense(field, kept, times[0], end) if dense else None
    return Solution(out, field.tree(xs), record.stats(), status, states)


def _take(
    steps: Iterable[Step],
    record: _Record,
    event: Event | None,
    progress: Callable[[float], None] | None,
) -> Status:
    """Take the steps, up to an event if there is one."""
    start, *_, end = record.times
    for step in steps:
        if not step.accepted:
            record.rejected += 1
            continue
        stop = find_event(event, record.field, step) if event else None
        record.add(step, stop)
        if progress:
            progress((step.end.t - start) / (end - start))
        if stop is not None:
            return Status.EVENT
    return Status.SUCCESS


class _Record:
    """The states at the output times so far, and the steps that led there, if they are kept."""

    def __init__(self, field: Field, times: list[float], start: mx.array, dense: bool):
        self.field, self.times, self.dense = field, times, dense
        self.reached, self.pieces = times[:1], [start[None]]
        self.sizes, self.rejected, self.kept = [], 0, list[Step]()

    def add(self, step: Step, stop: float | None) -> None:
        """Take in an accepted step, up to the time `stop` of an event if there is one."""
        wanted = between(self.times, step.start.t, step.end.t if stop is None else stop)
        if stop is not None:
            # An output time that the field cannot tell from the event's gives way to it.
            here, *others = seen([stop, *wanted], self.field.time_dtype)
            wanted = [t for t, other in zip(wanted, others, strict=True) if other != here]
            wanted.append(stop)
        pieces = states_at(self.field, step, wanted)
        begin(step.end.x, pieces)
        self.reached += wanted
        self.pieces += pieces
        self.sizes.append(abs(step.end.t - step.start.t))
        if self.dense:
            solution_inside(self.field, step)
            self.kept.append(step)

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
    """States at `times` inside a step and at its end, time first, in up to two pieces."""
    pieces = []
    ends_here = times[-1:] == [step.end.t]
    inside = times[:-1] if ends_here else times
    if inside:
        pieces.append(interpolate(field, step, inside))
    if ends_here:
        pieces.append(step.end.x[None])
    return pieces
