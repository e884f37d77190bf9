"""Step-size control: error norms, the first step, the next step."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from flowmlx.solvers.steps import Leaves, Slope, Time, add, outer

# From the ratios of error to tolerance, leaf by leaf, to one number, or one for each sample.
Norm = Callable[[Leaves], mx.array]
# One (rtol, atol) for each leaf.
Tolerance = list[tuple[float, float]]


@dataclass(frozen=True)
class Controller:
    """How the error of a step decides on the length of the next.

    With q the order of the error estimate plus one and e_n the error norm of a step, e_n-1 and
    e_n-2 those of the accepted steps before it, a step is multiplied by
    safety e_n^(-(p+i+d)/q) e_n-1^((p+2d)/q) e_n-2^(-d/q), kept within [min_factor, max_factor], and
    by no more than 1 right after a rejection. p = d = 0 is the elementary controller. `dtmin` and
    `dtmax` bound |dt| (the last step may be 1 % longer); a solve that needs less than dtmin stops.
    `first_step`: |dt| of the first step, None for Hairer's choice. Raises ValueError for numbers
    out of range. Sources: Soderlind 2003 (ACM TOMS 29), section 5; Hairer, Norsett & Wanner I,
    II.4.
    """

    p: float = 0.0
    i: float = 1.0
    d: float = 0.0
    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 10.0
    dtmin: float = 0.0
    dtmax: float = math.inf
    first_step: float | None = None

    def __post_init__(self):
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
                raw = raw * np.fmax(np.fmin(e, 1e12), 1e-12) ** (exponent / order)
        return np.minimum(np.maximum(raw, self.min_factor), self.max_factor)


def _require(holds: bool, name: str, value: float | None, expected: str) -> None:
    if not holds:
        raise ValueError(f"Controller: {name} is {value!r}; expected a number {expected}")


DEFAULT_CONTROL = Controller()


def rms(ratios: Leaves) -> mx.array:
    """Root mean square over every number of every leaf, whatever their shapes."""
    squares = [mx.sum(mx.square(r)) for r in ratios]
    return mx.sqrt(sum(squares[1:], start=squares[0]) / sum(r.size for r in ratios))


def per_sample_rms(ratios: Leaves) -> mx.array:
    """Root mean square of each sample: leaves (batch, ...) -> (batch,)."""
    flat = [r.reshape(len(r), -1) for r in ratios]
    squares = [mx.sum(mx.square(r), axis=1) for r in flat]
    return mx.sqrt(sum(squares[1:], start=squares[0]) / sum(r.shape[1] for r in flat))


def per_sample_max(ratios: Leaves) -> mx.array:
    """Largest root mean square of a sample: no sample is hidden by its batch.

    Leaves (batch, ...), all with the same batch.
    """
    return mx.max(per_sample_rms(ratios))


def error_ratios(error: Leaves, x: Leaves, x_next: Leaves, tolerance: Tolerance) -> Leaves:
    """Error divided by atol + rtol max(|x|, |x_next|)."""
    return [
        e / (rtol * mx.maximum(mx.abs(a), mx.abs(b)) + atol)
        for e, a, b, (rtol, atol) in zip(error, x, x_next, tolerance, strict=True)
    ]


def first_step(
    field: Slope, t: Time, end: float, x: Leaves, k: Leaves, order: int, norm: Callable
) -> Time:
    """Return signed first steps, no longer than end - t; costs one evaluation.

    `norm` gives the size of a change in a state near x, as host numbers, one in all or one for each
    sample; `order` is the order of the error estimate plus one. Not a number where the state or the
    field is not finite. Hairer, Norsett & Wanner I, II.4, "starting step size".
    """
    span = end - t
    d0, d1 = norm(x), norm(k)
    tiny = np.minimum(d0, d1) < 1e-5
    h0 = np.fmin(np.where(tiny, 1e-6, 0.01 * d0 / np.where(tiny, 1.0, d1)), np.abs(span))
    probe = add(x, [outer((np.sign(span) * h0)[None], leaf)[0] for leaf in k])
    change = [b - a for a, b in zip(k, field(t + np.sign(span) * h0, probe), strict=True)]
    d = np.maximum(d1, norm(change) / h0)
    flat = d <= 1e-15
    h1 = np.where(flat, np.maximum(1e-6, 1e-3 * h0), (0.01 / np.where(flat, 1.0, d)) ** (1 / order))
    # A field that is not finite a little further on says nothing about the length of a step.
    h1 = np.where(np.isfinite(d), h1, h0)
    h = np.minimum(np.minimum(100 * h0, h1), np.abs(span))
    return np.where(np.isfinite(d0 + d1), np.sign(span) * h, np.nan)
