"""Step-size control: error norms, the first step, the next step."""

import math
from dataclasses import dataclass

import mlx.core as mx

from flowmlx.solvers.steps import Leaves, Slope


@dataclass(frozen=True)
class Controller:
    """A proportional-integral-derivative controller of the step size.

    With q the order of the error estimate plus one and e_n the error norm of the last step, e_n-1
    and e_n-2 those of the steps accepted before it, the step is multiplied by
    safety e_n^(-(p+i+d)/q) e_n-1^((p+2d)/q) e_n-2^(-d/q), kept in [min_factor, max_factor].
    i = 1, p = d = 0 is the elementary controller. Source: Soderlind 2003, section 5;
    Hairer, Norsett & Wanner I, II.4.
    """

    p: float = 0.0
    i: float = 1.0
    d: float = 0.0
    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 10.0

    def factor(self, errors: tuple[float, float, float], order: int) -> float:
        """Factor for the next step from the last three error norms, newest first."""
        if not math.isfinite(errors[0]):
            return self.min_factor
        exponents = (-(self.p + self.i + self.d), self.p + 2 * self.d, -self.d)
        # An error of zero asks for an infinite factor.
        raw = self.safety * math.prod(
            max(e, 1e-12) ** (x / order) for e, x in zip(errors, exponents, strict=True)
        )
        return min(max(raw, self.min_factor), self.max_factor)


def error_norm(error: Leaves, x: Leaves, x_next: Leaves, rtol: float, atol: float) -> float:
    """Root mean square over all numbers of error / (atol + rtol max(|x|, |x_next|)).

    Waits for the result. Not finite if `error` is not.
    """
    squares = [
        mx.sum(mx.square(e / (rtol * mx.maximum(mx.abs(a), mx.abs(b)) + atol)))
        for e, a, b in zip(error, x, x_next, strict=True)
    ]
    return math.sqrt(float(sum(squares[1:], start=squares[0])) / sum(e.size for e in error))


def first_step(
    field: Slope,
    t: float,
    end: float,
    x: Leaves,
    k: Leaves,
    order: int,
    rtol: float,
    atol: float,
) -> float:
    """Return a signed first step; costs one evaluation.

    Hairer, Norsett & Wanner I, II.4, algorithm "starting step size"; `order` is the order of the
    error estimate plus one. Not finite if the state or the field is not.
    """

    d0 = error_norm(x, x, x, rtol, atol)
    d1 = error_norm(k, x, x, rtol, atol)
    if not math.isfinite(d0 + d1):
        return math.nan
    span = end - t
    h0 = 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1
    h0 = math.copysign(min(h0, abs(span)), span)
    probe = [a + h0 * b for a, b in zip(x, k, strict=True)]
    change = [b - a for a, b in zip(k, field(t + h0, probe), strict=True)]
    d2 = error_norm(change, x, x, rtol, atol) / abs(h0)
    if not math.isfinite(d2):
        return h0
    d = max(d1, d2)
    h1 = max(1e-6, abs(h0) * 1e-3) if d <= 1e-15 else (0.01 / d) ** (1 / order)
    return math.copysign(min(100 * abs(h0), h1, abs(span)), span)
