"""Step-size control: error norms, the first step, the next step."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.solvers.arrays import check_number, samplewise
from flowmlx.solvers.dense import along
from flowmlx.solvers.stepper import Slope, Time
from flowmlx.solvers.tracing import read

# From the ratios of error to tolerance to one number.
Norm = Callable[[mx.array], mx.array]
# rtol and atol: numbers, or arrays that broadcast against the state.
Tolerance = tuple[Any, Any]

# A step must move t by this many units in the last place of what the field sees.
MIN_STEP_ULPS = 8
# A last step this much longer spares a tiny one after it.
STRETCH = 1.01


@dataclass(frozen=True)
class Controller:
    """How the error of a step decides on the length of the next.

    With q the order of the error estimate plus one and e_n the error norm of a step, e_n-1 and
    e_n-2 those of the accepted steps before it, a step is multiplied by
    safety e_n^(-(p+i+d)/q) e_n-1^((p+2d)/q) e_n-2^(-d/q), kept within [min_factor, max_factor], and
    by no more than 1 right after a rejection. p = d = 0 is the elementary controller. `dtmin` and
    `dtmax` bound |dt| (the last step may be shorter than the one, and 1 % longer than the other); a
    solve that needs less than dtmin stops.
    `first_step`: |dt| of the first step, None for Hairer's choice. Raises ValueError for numbers
    out of range. Sources: Soderlind 2003 (ACM TOMS 29), section 5; Hairer, Norsett & Wanner I,
    II.4.
    """

    p: float = 0.2
    i: float = 0.65
    d: float = 0.0
    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 10.0
    dtmin: float = 0.0
    dtmax: float = math.inf
    first_step: float | None = None

    def __post_init__(self):
        for name, value in vars(self).items():
            if not (name == "first_step" and value is None):
                check_number(value, f"Controller: {name}", "a number", lambda _: True)
        _require(self.p + self.i + self.d > 0, "p + i + d", self.p + self.i + self.d, "above 0")
        _require(0 < self.safety <= 1, "safety", self.safety, "in (0, 1]")
        _require(0 < self.min_factor < 1, "min_factor", self.min_factor, "in (0, 1)")
        _require(self.max_factor > 1, "max_factor", self.max_factor, "above 1")
        _require(0 <= self.dtmin < math.inf, "dtmin", self.dtmin, "finite and >= 0")
        _require(self.dtmax > self.dtmin, "dtmax", self.dtmax, f"above dtmin={self.dtmin!r}")
        first = self.first_step
        _require(first is None or 0 < first < math.inf, "first_step", first, "None or above 0")

    def factor(self, errors: tuple[Time, Time, Time], order: int) -> Time:
        """Factor for the next step from the last three error norms, newest first."""
        exponents = (-(self.p + self.i + self.d), self.p + 2 * self.d, -self.d)
        raw = self.safety
        for e, exponent in zip(errors, exponents, strict=True):
            if exponent:
                # An error of zero asks for an infinite factor, one that is not finite for zero.
                raw = raw * _clip(e, 1e-12, 1e12) ** (exponent / order)
        return _clip(raw, self.min_factor, self.max_factor)


def _clip(value: Time, low: float, high: float) -> Time:
    """Value within [low, high], `high` if it is not a number."""
    if isinstance(value, float):
        return max(value if value <= high else high, low)
    return np.fmax(np.fmin(value, high), low)


def choose(flag: Any, a: Time, b: Time) -> Time:
    """`a` where the flag is up, else `b`: of one number, or of each sample's."""
    return np.where(flag, a, b) if isinstance(flag, np.ndarray) else a if flag else b


def _require(holds: bool, name: str, value: float | None, expected: str) -> None:
    if not holds:
        raise ValueError(f"Controller: {name} is {value!r}; expected a number {expected}")


DEFAULT_CONTROL = Controller()


class Pace(NamedTuple):
    """What decides on the steps to come.

    `h`: length of the next, signed. `errors`: the norms of the last two accepted steps, newest
    first. `limit`: the largest factor for the step after an accepted one.
    """

    h: Time
    errors: tuple[Time, Time]
    limit: Time

    def within(self, shortest: Time, longest: float) -> Time:
        """The length of the next step, between these bounds on its size."""
        size = choose(shortest > abs(self.h), shortest, abs(self.h))
        size = choose(longest < size, longest, size)
        return choose(self.h < 0, -size, size)

    def after(
        self, dt: Time, error: Time, accepted: Any, control: Controller, order: int
    ) -> "Pace":
        """The pace after a step of length `dt` with that error."""
        factor = control.factor((error, *self.errors), order)
        limit = choose(accepted, self.limit, control.safety)
        before, before_that = self.errors
        return Pace(
            dt * choose(limit < factor, limit, factor),
            (choose(accepted, error, before), choose(accepted, before, before_that)),
            choose(accepted, control.max_factor, 1.0),
        )


def wide(x: mx.array) -> mx.array:
    """In float32 at least: squares of float16 overflow at 256, and its tolerances are 0."""
    return x.astype(mx.float32) if x.dtype in (mx.float16, mx.bfloat16) else x


def rms(ratios: mx.array) -> mx.array:
    """Root mean square over all numbers, 0 of none."""
    return mx.sqrt(mx.sum(mx.square(wide(ratios))) / max(ratios.size, 1))


def per_sample_rms(ratios: mx.array) -> mx.array:
    """Root mean square of each sample: (batch, ...) -> (batch,)."""
    flat = wide(samplewise(ratios))
    return mx.sqrt(mx.sum(mx.square(flat), axis=1) / max(flat.shape[1], 1))


def per_sample_max(ratios: mx.array) -> mx.array:
    """Largest root mean square of a sample, so that no sample is hidden by its batch.

    For states (batch, ...); in a tree, all leaves need the same batch.
    """
    return mx.max(per_sample_rms(ratios))


def error_ratios(error: mx.array, x: mx.array, x_next: mx.array, tolerance: Tolerance) -> mx.array:
    """Error divided by atol + rtol max(|x|, |x_next|), in float32 at least."""
    rtol, atol = tolerance
    return wide(error) / (rtol * wide(mx.maximum(mx.abs(x), mx.abs(x_next))) + atol)


def unresolved(x: mx.array, rtol: Sequence[float], size: Callable) -> Any:
    """Whether the tolerance is less than the rounding error of the state x, or of each sample.

    `size(change, x, x_next)`: a norm of `error_ratios`, which is at most 1 / rtol for x itself.
    """
    rounding = mx.finfo(x.dtype).eps / 2
    if min(rtol) >= rounding:  # and the device is not waited for
        return False
    return np.array(read(size(x, x, x))) * rounding > 1


def first_step(
    field: Slope, t: Time, end: float, x: mx.array, k: mx.array, order: int, norm: Callable
) -> Time:
    """Return signed first steps, no longer than end - t; costs one evaluation.

    `norm` gives the size of a change in a state near x, one number in all or one for each sample;
    `order` is the order of the error estimate plus one. Not a number where the state or the
    field is not finite. Hairer, Norsett & Wanner I, II.4, "starting step size".
    """
    span, sign = np.abs(end - t), np.sign(end - t)
    d0, d1 = np.array(read(mx.stack([norm(x), norm(k)])))
    tiny = np.minimum(d0, d1) < 1e-5
    h0 = np.fmin(np.where(tiny, 1e-6, 0.01 * d0 / np.where(tiny, 1.0, d1)), span)
    probe = x + along(sign * h0, x.ndim, x.dtype) * k
    change = field(np.where(h0 < span, t + sign * h0, end), probe) - k
    with np.errstate(divide="ignore", invalid="ignore"):
        d = np.maximum(d1, np.array(read(norm(change))) / h0)
    flat = d <= 1e-15
    h1 = np.where(flat, np.maximum(1e-6, 1e-3 * h0), (0.01 / np.where(flat, 1.0, d)) ** (1 / order))
    # A field that is not finite a little further on says nothing about the length of a step.
    h1 = np.where(np.isfinite(d), h1, h0)
    h = np.minimum(np.minimum(100 * h0, h1), span)
    h = np.where(np.isfinite(d0 + d1), sign * h, np.nan)
    return h if h.ndim else h.item()


def answer_rate(field: Slope, t: Time, x: mx.array, change: mx.array) -> Time:
    """The rate at which the slope at (t, x) answers to a change of x along `change`.

    Best along the error of a step, in which what is stiff prevails. One number where t is one, else
    (batch,). Costs two evaluations.
    """
    batch = 1 if np.ndim(t) == 0 else len(x)

    def size(x: mx.array) -> mx.array:
        return mx.sqrt(mx.sum(mx.square(wide(x).reshape(batch, -1)), axis=1))

    nudge = math.sqrt(mx.finfo(x.dtype).eps) * mx.maximum(size(x), 1e-6) / size(change)
    nudge = nudge if batch == 1 else nudge.reshape(-1, *(1,) * (x.ndim - 1))
    change = (wide(change) * nudge).astype(x.dtype)
    rate = size(field(t, x + change) - field(t, x)) / size(change)
    rate = np.nan_to_num(np.array(read(rate)))
    return rate.item() if np.ndim(t) == 0 else rate


def shortest_step(t: Time, span: float, dtype: mx.Dtype, control: Controller) -> Time:
    """Shortest step from t: one that the field can tell from none, and no less than dtmin."""
    floor = max(sys.float_info.epsilon * abs(span), control.dtmin)
    return _clip(MIN_STEP_ULPS * mx.finfo(dtype).eps * abs(t), floor, math.inf)
