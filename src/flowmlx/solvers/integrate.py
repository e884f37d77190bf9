"""odeint: the loop, output times, limits, statistics."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import pairwise
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from flowmlx.solvers import tableaus
from flowmlx.solvers.control import Controller, error_norm, first_step
from flowmlx.solvers.steps import Leaves, Step, interpolate, rk_step
from flowmlx.solvers.tableaus import Tableau

# A step must move t by this many units in the last place of the state's precision.
MIN_STEP_ULPS = 8


class Status(str, Enum):
    """How a solve ended."""

    SUCCESS = "success"
    MAX_STEPS = "max_steps"
    NON_FINITE = "non_finite"
    STAGNATION = "stagnation"


class Stats(NamedTuple):
    """Evaluations of the field, accepted and rejected steps, smallest and largest |dt| accepted."""

    nfe: int
    accepted: int
    rejected: int
    smallest_step: float
    largest_step: float


class Solution(NamedTuple):
    """States `xs` at the times `ts` (time first: xs[k] is the state at ts[k])."""

    ts: mx.array
    xs: Any
    stats: Stats
    status: Status


class SolverError(RuntimeError):
    """A solve that could not reach the last output time; `status`, `t` and `dt` say where."""

    def __init__(self, message: str, status: Status, t: float, dt: float):
        super().__init__(message)
        self.status, self.t, self.dt = status, t, dt


def odeint(
    field: Callable[..., Any],
    x0: Any,
    ts: Any,
    *,
    method: str = "dopri5",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    step_size: float | None = None,
    max_steps: int = 10_000,
    throw: bool = True,
    args: tuple = (),
) -> Solution:
    """Integrate dx/dt = field(t, x, *args) from ts[0] to ts[-1] and return the states at `ts`.

    `field` gets t as an array scalar and x with the shapes of `x0`, and returns dx/dt with the same
    shapes and dtypes; it is never evaluated outside the interval. `x0`: a floating-point array or
    any tree (dict, list, tuple, NamedTuple) of them. `ts`: two or more times, increasing or
    decreasing. `method`: a name in METHODS. Adaptive methods keep the local error below
    atol + rtol |x| (root mean square over all numbers) and interpolate to the output times. Fixed
    methods step from output time to output time. With `step_size` every method takes equal steps of
    at most that size and interpolates. `max_steps` bounds accepted plus rejected steps.

    Returns Solution(ts, xs, stats, status); xs[0] is x0. Raises ValueError or TypeError for bad
    arguments and SolverError when the solve cannot be finished; with `throw=False` the latter
    returns the states up to there, all finite, and the status.
    """
    tableau = _look_up(method)
    times = _check_times(ts)
    _check_settings(rtol, atol, step_size, max_steps)
    slope = _Field(field, x0, args)
    _check_distinct(times, slope.time_dtype)
    solve = _Solve(slope, times, max_steps, method)
    if tableau.error is not None and step_size is None:
        # Zero over zero is no error where atol is 0 and the state is 0.
        steps = solve.adaptive(tableau, Controller(), rtol, max(atol, 1e-37))
    else:
        steps = solve.on_grid(tableau, _grid(times, step_size))
    chunks, failure = [[x[None] for x in slope.leaves]], None
    try:
        for step in steps:
            pieces = solve.outputs(step)
            # Work starts now, and the graph of the solve does not grow.
            mx.async_eval(step.x_next, pieces)
            chunks += pieces
    except SolverError as error:
        failure = error
    xs = [mx.concatenate(parts) for parts in zip(*chunks, strict=True)]
    finite = _count_finite(xs)
    if finite < len(xs[0]):
        failure = _non_finite(method, times, finite, solve.largest)
    if failure is not None and throw:
        raise failure
    return Solution(
        mx.array(times[:finite], dtype=slope.time_dtype),
        slope.tree([x[:finite] for x in xs]),
        solve.stats(),
        Status.SUCCESS if failure is None else failure.status,
    )


class _Field:
    """The user's field on leaves and host times; counts its evaluations."""

    def __init__(self, field: Callable[..., Any], x0: Any, args: tuple):
        self.field, self.x0, self.args = field, x0, args
        self.leaves = _leaves(x0, "x0")
        self.is_array = isinstance(x0, mx.array)
        is_double = any(x.dtype == mx.float64 for x in self.leaves)
        self.time_dtype = mx.float64 if is_double else mx.float32
        self.nfe = 0

    def __call__(self, t: float, x: Leaves) -> Leaves:
        self.nfe += 1
        v = self.field(mx.array(t, dtype=self.time_dtype), self.tree(x), *self.args)
        v = [v] if isinstance(v, mx.array) else _leaves(v, "the value of field(t, x)")
        if self.nfe == 1:
            self._check(v)
        return v

    def tree(self, leaves: Leaves) -> Any:
        if self.is_array:
            return leaves[0]
        rest = iter(leaves)
        return tree_map(lambda _: next(rest), self.x0)

    def _check(self, v: Leaves) -> None:
        got = [(x.shape, x.dtype) for x in v]
        expected = [(x.shape, x.dtype) for x in self.leaves]
        if got != expected:
            raise ValueError(
                f"field(t, x) returned shapes and dtypes {got}; expected those of x0, {expected}"
            )


class _Solve:
    """The loops over steps, with the counts they share."""

    def __init__(self, field: _Field, times: list[float], max_steps: int, method: str):
        self.field, self.times, self.max_steps, self.method = field, times, max_steps, method
        self.sign = 1.0 if times[-1] > times[0] else -1.0
        self.keys = [self.sign * t for t in times]
        self.accepted = self.rejected = 0
        self.smallest, self.largest = math.inf, 0.0

    def on_grid(self, tableau: Tableau, grid: list[float]) -> Iterator[Step]:
        """Yield the steps between the times of `grid`."""
        x, k = self.field.leaves, None
        for n, (t, t_next) in enumerate(pairwise(grid)):
            if n == self.max_steps:
                raise self._out_of_steps(t, t_next - t)
            step = rk_step(self.field, tableau, t, t_next, x, k or self.field(t, x))
            self._accept(step)
            yield step
            x, k = step.x_next, step.k_next

    def adaptive(
        self, tableau: Tableau, control: Controller, rtol: float, atol: float
    ) -> Iterator[Step]:
        """Yield the accepted steps of an embedded method. Hairer, Norsett & Wanner I, II.4."""
        field, end, order = self.field, self.times[-1], tableau.error_order + 1
        t, x = self.times[0], field.leaves
        k = field(t, x)
        h = first_step(field, t, end, x, k, order, rtol, atol)
        if not math.isfinite(h):
            raise self._bad_start(t)
        errors = (1.0, 1.0)
        limit, error = control.max_factor, 0.0
        for _ in range(self.max_steps):
            # A last step up to 1 % longer spares a tiny one after it.
            t_next = end if abs(end - t) <= 1.01 * abs(h) else t + h
            if abs(t_next - t) < self._resolution(t):
                raise self._too_small(t, abs(t_next - t), error)
            step = rk_step(field, tableau, t, t_next, x, k)
            error = error_norm(step.error, x, step.x_next, rtol, atol)
            factor = control.factor((error, *errors), order)
            if not error <= 1:
                self.rejected += 1
                h, limit = (t_next - t) * min(factor, control.safety), 1.0
                continue
            self._accept(step)
            yield step
            if t_next == end:
                return
            h, limit = (t_next - t) * min(factor, limit), control.max_factor
            t, x, k = t_next, step.x_next, step.k_next or field(t_next, step.x_next)
            errors = (error, errors[0])
        raise self._out_of_steps(t, h)

    def outputs(self, step: Step) -> list[Leaves]:
        """Return the states at the output times in (step.t, step.t_next], in time-first pieces."""
        first = bisect_right(self.keys, self.sign * step.t)
        end = bisect_left(self.keys, self.sign * step.t_next)
        pieces = []
        if first < end:
            pieces.append(interpolate(self.field, step, self.times[first:end]))
        if end < len(self.times) and self.times[end] == step.t_next:
            pieces.append([x[None] for x in step.x_next])
        return pieces

    def stats(self) -> Stats:
        smallest = self.smallest if self.accepted else 0.0
        return Stats(self.field.nfe, self.accepted, self.rejected, smallest, self.largest)

    def _accept(self, step: Step) -> None:
        size = abs(step.t_next - step.t)
        self.accepted += 1
        self.smallest, self.largest = min(self.smallest, size), max(self.largest, size)

    def _resolution(self, t: float) -> float:
        """Smallest step that the field can tell from none at time t."""
        span = abs(self.times[-1] - self.times[0])
        eps = float(mx.finfo(self.field.time_dtype).eps)
        return max(MIN_STEP_ULPS * eps * abs(t), np.finfo(float).eps * span)

    def _out_of_steps(self, t: float, dt: float) -> SolverError:
        return SolverError(
            f"{self.method} took max_steps={self.max_steps} steps and is at t={t:.9g}, "
            f"dt={dt:.3g}, short of t={self.times[-1]:.9g}. Allow more steps or a larger error: "
            f'odeint(field, x0, ts, method="{self.method}", max_steps={10 * self.max_steps})',
            Status.MAX_STEPS,
            t,
            dt,
        )

    def _bad_start(self, t: float) -> SolverError:
        return SolverError(
            f"x0 or field(t, x0) is not finite at t={t:.9g}, before the first step dt. Look at the "
            f"field there: field(mx.array({t!r}), x0)",
            Status.NON_FINITE,
            t,
            0.0,
        )

    def _too_small(self, t: float, dt: float, error: float) -> SolverError:
        where = f"{self.method} at t={t:.9g} needs a step below dt={dt:.3g}"
        if not math.isfinite(error):
            return SolverError(
                f"{where}: with any step the state or the field is not finite (NaN or overflow). "
                "The solution blows up there or the field is not defined; end before it or look at "
                f"the field: odeint(field, x0, [{self.times[0]!r}, {t!r}], throw=False)",
                Status.NON_FINITE,
                t,
                dt,
            )
        return SolverError(
            f"{where}, too small for {self.field.time_dtype} to tell from none. The solution blows "
            "up there, the field jumps or is stiff, or the tolerance is below the rounding error. "
            f'Loosen it or fix the step: odeint(field, x0, ts, method="{self.method}", '
            "rtol=1e-3, atol=1e-3)",
            Status.STAGNATION,
            t,
            dt,
        )


def _non_finite(method: str, times: list[float], index: int, dt: float) -> SolverError:
    t = times[max(index - 1, 0)]
    return SolverError(
        f"{method} met a state that is not finite (NaN or overflow) after t={t:.9g} with steps of "
        f"dt={dt:.3g}. The solution blows up, the steps are too long to be stable, or the field "
        "returns NaN. Take smaller steps or let the method choose them: "
        'odeint(field, x0, ts, method="dopri5")',
        Status.NON_FINITE,
        t,
        dt,
    )


def _leaves(tree: Any, name: str) -> Leaves:
    leaves = [leaf for _, leaf in tree_flatten(tree)]
    for leaf in leaves:
        if not isinstance(leaf, mx.array) or not mx.issubdtype(leaf.dtype, mx.floating):
            kind = leaf.dtype if isinstance(leaf, mx.array) else type(leaf).__name__
            raise TypeError(
                f"{name} holds {kind}; expected floating-point mx.array leaves: "
                "mx.array(value, dtype=mx.float32)"
            )
    return leaves


def _look_up(method: str) -> Tableau:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    return METHODS[method]


def _check_times(ts: Any) -> list[float]:
    times = np.array(ts, dtype=np.float64)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(
            f"ts has shape {times.shape}; expected two or more times, such as [0.0, 1.0]"
        )
    if not np.isfinite(times).all():
        raise ValueError(f"ts holds a time that is not finite: {times[~np.isfinite(times)][0]}")
    return times.tolist()


def _check_distinct(times: list[float], dtype: mx.Dtype) -> None:
    """Refuse times that do not go one way, or are one and the same to the field."""
    seen = np.array(times, np.float64 if dtype == mx.float64 else np.float32)
    steps = np.diff(seen) * (1 if times[-1] > times[0] else -1)
    if (steps <= 0).any():
        k = int(np.argmax(steps <= 0))
        raise ValueError(
            f"ts[{k}] = {times[k]!r} is followed by ts[{k + 1}] = {times[k + 1]!r}; expected times "
            f"that strictly increase or strictly decrease (in {dtype}), such as sorted(set(ts))"
        )


def _check_settings(rtol, atol, step_size, max_steps) -> None:
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value!r}; expected a number >= 0, such as 1e-4")
    if rtol == atol == 0:
        raise ValueError("rtol and atol are both 0; expected one of them above 0, such as 1e-4")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(
            f"step_size is {step_size!r}; expected a number > 0 for either direction of time"
        )
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps!r}; expected an integer >= 1")


def _grid(times: list[float], step_size: float | None) -> list[float]:
    """Ends of fixed steps: the output times, or equal steps of at most `step_size`."""
    if step_size is None:
        return times
    t0, t1 = times[0], times[-1]
    # 1.1 / 0.1 is 11.000000000000002: eleven steps, not twelve.
    n = max(1, math.ceil(abs(t1 - t0) / step_size * (1 - 1e-12)))
    return [t0 + k * (t1 - t0) / n for k in range(n)] + [t1]


def _count_finite(xs: Leaves) -> int:
    """Number of leading times whose states are all finite."""
    finite = [mx.all(mx.isfinite(x.reshape(len(x), -1)), axis=1) for x in xs]
    flags = np.array(mx.all(mx.stack(finite), axis=0))
    return len(flags) if flags.all() else int(np.argmin(flags))


METHODS: dict[str, Tableau] = {
    "euler": tableaus.EULER,
    "midpoint": tableaus.MIDPOINT,
    "heun": tableaus.HEUN,
    "ralston": tableaus.RALSTON,
    "rk4": tableaus.RK4,
    "rk4_38": tableaus.RK4_38,
    "bosh3": tableaus.BOSH3,
    "dopri5": tableaus.DOPRI5,
    "tsit5": tableaus.TSIT5,
}
