"""odeint_per_sample: every sample of a batch chooses its own steps."""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flowmlx.solvers import failures
from flowmlx.solvers.arrays import entry
from flowmlx.solvers.control import (
    DEFAULT_CONTROL,
    STRETCH,
    Controller,
    answer_rate,
    error_ratios,
    first_step,
    per_sample_rms,
    shortest_step,
    unresolved,
)
from flowmlx.solvers.failures import Call, Status
from flowmlx.solvers.inputs import (
    Field,
    check_control,
    check_max_steps,
    check_times,
    check_tolerance,
    look_up,
    spread,
)
from flowmlx.solvers.solution import Solution, Stats
from flowmlx.solvers.steps import along, finish, interpolate_samples, rk_step
from flowmlx.solvers.tableaus import Tableau
from flowmlx.solvers.times import with_times
from flowmlx.solvers.tracing import begin, read, started


def odeint_per_sample(
    field: Callable[..., Any],
    x0: Any,
    ts: Any,
    *,
    method: str = "dopri5",
    rtol: Any = 1e-4,
    atol: Any = 1e-4,
    max_steps: int = 10_000,
    throw: bool = True,
    args: tuple = (),
    control: Controller = DEFAULT_CONTROL,
) -> Solution:
    """Integrate dx/dt = field(t, x, *args) with steps of their own for all samples of a batch.

    As `odeint` with an adaptive `method`, except that all leaves of `x0` are (batch, ...), `field`
    gets t of shape (batch,), and the error of each sample is the root mean square over its own
    numbers. A field that treats samples apart gives each the same result in any batch, but for the
    rounding of matrix products, which may depend on their size. Samples that are done or have
    failed stand still while the others go on.

    Returns Solution(ts, xs, stats, status): `status` is a list with one entry per sample and
    `stats` holds one number per sample, except nfe, which counts evaluations of the whole batch.
    With `throw=False`, states that a sample did not reach are NaN.
    """
    tableau = look_up(method)
    if not isinstance(tableau, Tableau) or tableau.error is None:
        raise ValueError(f"method is {method!r}; expected an adaptive one, such as 'dopri5'")
    slope = Field(field, x0, args)
    times = np.array(check_times(ts, slope.time_dtype))
    tolerances = check_tolerance(rtol, atol, slope)
    tolerance = spread(tolerances, slope)
    max_steps = check_max_steps(max_steps)
    check_control(control)
    if not slope.lead:
        raise ValueError(f"x0 has shapes {slope.shapes}; expected (batch, ...), one batch for all")
    batch = slope.lead[0]

    def size(change: mx.array, x: mx.array, x_next: mx.array) -> mx.array:
        return per_sample_rms(error_ratios(change, x, x_next, tolerance))

    def call(sample: int) -> Call:
        return Call("odeint_per_sample", method, f"{method}, sample {sample} of {batch},")

    order, end, stage = tableau.error_order + 1, times[-1], started(slope)
    t = np.full(batch, times[0])
    x = entry(with_times(slope, slope.x0[None], [t], ts[:1], sign=-1), 0)
    k = slope(t, x)
    if control.first_step is None:
        h = first_step(slope, t, end, x, k, order, lambda y: size(y, x, x))
    else:
        h = np.full(batch, math.copysign(control.first_step, end - times[0]))
    failed = {n: failures.not_finite_at_start(call(n), times[0]) for n in _where(~np.isfinite(h))}
    rounded = np.broadcast_to(unresolved(x, tolerances[0], size), (batch,))
    failed |= {n: failures.below_rounding(call(n), times[0], 0.0, x.dtype) for n in _where(rounded)}
    active = np.isfinite(h) & ~rounded
    errors, limit = np.ones((2, batch)), np.full(batch, control.max_factor)
    rejected, sizes = np.zeros(batch, dtype=int), _Sizes(batch)
    places, pieces = [np.arange(batch)], [x]
    for _ in range(max_steps):
        if not active.any():
            break
        shortest = shortest_step(t, end - times[0], slope.time_dtype, control)
        h = np.sign(end - t) * np.minimum(np.maximum(np.abs(h), shortest), control.dtmax)
        t_next = np.where(np.abs(end - t) <= STRETCH * np.abs(h), end, t + h)
        # A sample that is done or has failed takes a step of length zero.
        t_next = np.where(active, t_next, t)
        step = rk_step(stage, tableau, t, t_next, x, k)
        assert step.error is not None
        change = step.error
        error = np.array(read(size(change, x, step.x_next)))
        accepted = active & (error <= 1)
        samples, index = _outputs(times, t, t_next, accepted)
        if len(samples):
            places.append(index * batch + samples)
            pieces.append(interpolate_samples(finish(slope, step), samples, times[index]))
        x = _choose(accepted, step.x_next, x)
        k_next = slope(t_next, step.x_next) if step.k_next is None else step.k_next
        k = _choose(accepted, k_next, k)
        begin(x, pieces[-1])

        sizes.add(np.abs(t_next - t), accepted)
        rejected += active & ~accepted
        for n in _where(active & ~accepted & (np.abs(h) <= shortest)):
            failed[n] = failures.no_step(call(n), t[n], h[n], error[n])
            active[n] = False
        factor = control.factor((error, errors[0], errors[1]), order)
        h = (t_next - t) * np.minimum(factor, np.where(accepted, limit, control.safety))
        limit = np.where(accepted, control.max_factor, 1.0)
        errors = np.where(accepted, (error, errors[0]), errors)
        t = np.where(accepted, t_next, t)
        active &= t != end
    tight = np.broadcast_to(unresolved(x, tolerances[0], size), (batch,))
    rate = answer_rate(slope, t, x, change) if active.any() else t
    for n in _where(active):
        failed[n] = (
            failures.below_rounding(call(n), t[n], h[n], x.dtype)
            if tight[n]
            else failures.out_of_steps(call(n), max_steps, t[n], h[n], end, rate[n])
        )
    xs = _arrange(pieces, places, (len(times), batch))
    xs = with_times(slope, xs, [np.full(batch, time) for time in times], ts, sign=1)
    for n in _where(~_all_finite(xs)):
        failed.setdefault(n, failures.not_finite_after(call(n), times[0], sizes.largest[n]))
    if failed and throw:
        raise failed[min(failed)]
    return Solution(
        slope.time(times),
        slope.tree(xs),
        Stats(slope.nfe, *map(mx.array, (sizes.count, rejected, sizes.least(), sizes.largest))),
        [failed[n].status if n in failed else Status.SUCCESS for n in range(batch)],
    )


def _where(flags: np.ndarray) -> list[int]:
    return np.flatnonzero(flags).tolist()


class _Sizes:
    """Number, smallest and largest of the accepted steps of each sample."""

    def __init__(self, batch: int):
        self.count, self.largest = np.zeros(batch, dtype=int), np.zeros(batch)
        self.smallest = np.full(batch, np.inf)

    def add(self, size: np.ndarray, accepted: np.ndarray) -> None:
        self.count += accepted
        self.smallest = np.where(accepted, np.minimum(self.smallest, size), self.smallest)
        self.largest = np.where(accepted, np.maximum(self.largest, size), self.largest)

    def least(self) -> np.ndarray:
        return np.where(self.count, self.smallest, 0.0)


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
