"""odeint_per_sample: every sample of a batch chooses its own steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from flowmlx.solvers import failures
from flowmlx.solvers.arrays import entry
from flowmlx.solvers.control import per_sample_rms
from flowmlx.solvers.dense import Polynomials, along, solution_inside
from flowmlx.solvers.failures import Call, SolverError, Status
from flowmlx.solvers.loops import adaptive_steps
from flowmlx.solvers.options import StepOptions, complete, takes
from flowmlx.solvers.problem import Problem, call_of, prepare
from flowmlx.solvers.solution import Solution, Stats
from flowmlx.solvers.stepper import Point, Slope, Step
from flowmlx.solvers.times import with_times
from flowmlx.solvers.tracing import begin, read

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(StepOptions)
def odeint_per_sample(
    field: Callable[..., Any],
    x0: Any,
    ts: Any,
    *,
    args: tuple = (),
    throw: bool = True,
    **options: Unpack[StepOptions],
) -> Solution:
    """Integrate dx/dt = field(t, x, *args), with separate step sizes for each sample of a batch.

    Like `odeint` with an adaptive `method`, except that all leaves of `x0` have the shape
    (batch, ...), that `field` gets t with the shape (batch,), and that the error of each sample is
    the root mean square over its own numbers. If the field computes each sample independently of
    the others, the result for a sample does not depend on its batch, except for the rounding of
    matrix products. Samples that are done or have failed are not changed while the others continue.

    A `Stepper` of your own gets times of shape (batch,) here, may not use `memory`, and its
    `inside` is None or `dense.Polynomials`.

    Returns Solution(ts, xs, stats, status): `status` is a list with one entry per sample, and
    `stats` has one number per sample, except nfe, which counts evaluations of the whole batch. With
    `throw=False`, states that a sample did not reach are NaN.
    """
    problem = prepare(field, x0, ts, args, complete(StepOptions, options))
    slope, method = problem.field, problem.method
    if method.error_order is None:
        raise ValueError(f"method is {method.name!r}; expected an adaptive one, such as 'dopri5'")
    if not slope.lead:
        raise ValueError(f"x0 has shapes {slope.shapes}; expected (batch, ...), one batch for all")
    batch, times = slope.lead[0], np.array(problem.times)
    start = with_times(slope, slope.x0[None], [np.full(batch, times[0])], ts[:1], sign=-1)
    x = entry(start, 0)
    clock, sizes = OwnClocks(problem, batch), _Sizes(batch)
    places, pieces = [np.arange(batch)], [x]
    for step in adaptive_steps(problem, x, clock):
        t, t_next = step.start.t, step.end.t
        samples, index = _outputs(times, t, t_next, step.accepted)
        if len(samples):
            theta = (times[index] - t[samples]) / (t_next - t)[samples]
            places.append(index * batch + samples)
            pieces.append(_polynomials(slope, step).of_samples(samples, theta))
            begin(pieces[-1])
        sizes.add(np.abs(t_next - t), step.accepted)
    xs = _arrange(pieces, places, (len(times), batch))
    xs = with_times(slope, xs, [np.full(batch, time) for time in times], ts, sign=1)
    clock.active = np.ones(batch, dtype=bool)
    clock.fail(~_all_finite(xs), failures.not_finite_after, clock.numbers(times[0]), sizes.largest)
    if clock.failed and throw:
        raise clock.failed[min(clock.failed)]
    return Solution(
        slope.time(times),
        slope.tree(xs),
        sizes.stats(slope.nfe),
        [clock.failed[n].status if n in clock.failed else Status.SUCCESS for n in range(batch)],
    )


class OwnClocks:
    """Every sample has steps of its own; see `loops.Clock`. `failed`: the errors by sample."""

    def __init__(self, problem: Problem, batch: int):
        self.batch, self.active = batch, np.ones(batch, dtype=bool)
        self.call, self.failed = call_of("odeint_per_sample", problem.method), {}

    @property
    def running(self) -> bool:
        """Whether a sample has steps to take."""
        return bool(self.active.any())

    def numbers(self, value: float) -> np.ndarray:
        """That number for each sample."""
        return np.full(self.batch, value)

    def size(self, ratios: mx.array) -> mx.array:
        """Root mean square of each sample."""
        return per_sample_rms(ratios)

    def fail(self, flags: Any, failure: Callable[..., SolverError], *numbers: np.ndarray) -> None:
        """Note the failure of each sample, the first that it has, and end its solve."""
        failing = self.active & flags
        if not failing.any():
            return
        for n in np.flatnonzero(failing).tolist():
            who = f"{self.call.who}, sample {n} of {self.batch},"
            call = Call(self.call.function, self.call.method, who)
            self.failed.setdefault(n, failure(call, *(float(each[n]) for each in numbers)))
        self.active = self.active & ~failing

    def follow(self, step: Step, memory: Any, field: Slope) -> tuple[Point, Any]:
        """The end of the step for samples that accept it, its start for the others."""
        if step.memory is not None:
            raise TypeError(
                f"{self.call.who} remembers what it did, which samples with steps of their own "
                "cannot share; expected a method without memory, such as 'dopri5'"
            )
        start, end, accepted = step.start, step.end, step.accepted
        x = _choose(accepted, end.x, start.x)
        k = _choose(accepted, end.slope(field), start.slope(field))
        return Point(np.where(accepted, end.t, start.t), x, k), None


def _polynomials(field: Slope, step: Step) -> Polynomials:
    inside = solution_inside(field, step)
    if not isinstance(inside, Polynomials):
        raise TypeError(
            "the method's solution inside a step is a function of its own, which cannot be asked "
            "at a time for each sample; expected None or dense.Polynomials"
        )
    return inside


class _Sizes:
    """Numbers of accepted and rejected steps of each sample, and the sizes of the former."""

    def __init__(self, batch: int):
        self.count, self.rejected = np.zeros(batch, dtype=int), np.zeros(batch, dtype=int)
        self.smallest, self.largest = np.full(batch, np.inf), np.zeros(batch)

    def add(self, size: np.ndarray, accepted: np.ndarray) -> None:
        self.count += accepted
        self.rejected += (size > 0) & ~accepted  # the others stand still
        self.smallest = np.where(accepted, np.minimum(self.smallest, size), self.smallest)
        self.largest = np.where(accepted, np.maximum(self.largest, size), self.largest)

    def stats(self, nfe: int) -> Stats:
        smallest = np.where(self.count, self.smallest, 0.0)
        return Stats(nfe, *map(mx.array, (self.count, self.rejected, smallest, self.largest)))


def _outputs(
    times: np.ndarray, t: np.ndarray, t_next: np.ndarray, accepted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (sample, index of an output time) for the times in the accepted steps (t, t_next]."""
    sign = np.sign(times[-1] - times[0])
    first = np.searchsorted(sign * times, sign * t, side="right")
    stop = np.searchsorted(sign * times, sign * t_next, side="right")
    counts = np.where(accepted, stop - first, 0)
    samples = np.repeat(np.arange(len(t)), counts)
    ranks = np.arange(len(samples)) - np.repeat(np.cumsum(counts) - counts, counts)
    return samples, first[samples] + ranks


def _choose(accepted: np.ndarray, new: mx.array, old: mx.array) -> mx.array:
    """New rows where accepted, old rows elsewhere."""
    return new if accepted.all() else mx.where(along(accepted, new.ndim, mx.bool_), new, old)


def _arrange(pieces: list[mx.array], places: list[np.ndarray], shape: tuple) -> mx.array:
    """Rows at their places in (times, batch, ...), NaN where there is none."""
    rows = mx.concatenate([*pieces, mx.full_like(pieces[0][:1], math.nan)])
    source = np.full(math.prod(shape), len(rows) - 1)
    source[np.concatenate(places)] = np.arange(len(rows) - 1)
    return rows[mx.array(source)].reshape(*shape, *rows.shape[1:])


def _all_finite(xs: mx.array) -> np.ndarray:
    """Whether all states of a sample are finite: (times, batch, ...) -> (batch,)."""
    finite = mx.isfinite(xs).all(axis=(0, *range(2, xs.ndim)))
    return np.array(read(finite), dtype=bool)
