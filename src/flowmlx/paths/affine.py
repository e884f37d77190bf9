"""Affine paths: a weighted sum of a source point, a data point and noise.

The weights are three coefficients of time, t = 0 at the source and t = 1 at the data,

    x_t = alpha(t) x1 + beta(t) x0 + gamma(t) eps,        eps ~ N(0, I),

and the velocity is the time derivative of x_t at fixed (x0, x1, eps). Only the coefficients are
written down; automatic differentiation gives their derivatives. What is small near an end is
written as a product or a function of 1 - t, so that it keeps its digits in float32. To add a path,
subclass `AffinePath`, write `coefficients`, and enter it in `flowmlx.paths.PATHS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx

from flowmlx.paths.path import (
    PathSample,
    alike,
    check_margin,
    expand_time,
    path_time,
    time_derivative,
)
from flowmlx.solvers.arrays import as_number, check_count, check_key


def is_absent(coefficient: mx.array | float) -> bool:
    """Whether a coefficient is the number 0, and so zero for all times."""
    return isinstance(coefficient, (int, float)) and coefficient == 0


def _combine(*terms: tuple[mx.array | float, mx.array]) -> mx.array:
    """Sum of coefficient times array, without the terms that are absent.

    So noise that is not used is never drawn.
    """
    present = [c * x for c, x in terms if not is_absent(c)]
    return sum(present[1:], present[0]) if present else mx.zeros_like(terms[0][1])


def quarter_turn(t: mx.array) -> tuple[mx.array, mx.array]:
    """sin(pi t/2) and cos(pi t/2); values and derivatives keep their digits at both ends."""
    before, after = 0.5 * math.pi * t, 0.5 * math.pi * (1 - t)
    early = t < 0.5
    return (
        mx.where(early, mx.sin(before), mx.cos(after)),
        mx.where(early, mx.cos(before), mx.sin(after)),
    )


def _one_minus_power(t: mx.array, n: int) -> mx.array:
    """1 - t^n for an integer n >= 1; value and derivative keep their digits at both ends."""
    powers = mx.ones_like(t)
    for _ in range(n - 1):
        powers = 1 + t * powers
    return mx.where(t < 0.5, 1 - t**n, (1 - t) * powers)


@dataclass(frozen=True)
class AffinePath:
    """Base of the affine paths; subclasses define `coefficients(t) -> (alpha, beta, gamma)`.

    `sigma` is the standard deviation of the path's noise, in the units of the data (0: no noise).
    Raises ValueError where sigma is negative or not finite.
    """

    sigma: float = 0.0

    def __post_init__(self):
        self._number("sigma", "a finite number >= 0, such as 0.1", lambda s: 0 <= s < math.inf)

    def _number(self, name: str, expected: str, holds: Callable[[float], bool]) -> None:
        """Check a parameter, and keep it as a number of Python, or of MLX."""
        object.__setattr__(self, name, as_number(getattr(self, name), name, expected, holds))

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds that training times come from, and inside which conversions hold."""
        return 0.0, 1.0

    @property
    def gaussian_source(self) -> bool:
        """Whether the path's own noise is its source, so that x0 is not used."""
        return False

    def coefficients(self, t: mx.array) -> tuple:
        """Alpha, beta and gamma at `t`: arrays of its shape, or floats where constant."""
        raise NotImplementedError

    def sample(self, x0: mx.array, x1: mx.array, t: mx.array, *, key: mx.array) -> PathSample:
        """Draw x_t and its velocity u_t for paired endpoints.

        `x0`, `x1`: (batch, ...), the same shape; `t`: scalar or (batch,); `key`: for eps.
        Raises ValueError where shapes do not match.
        """
        x0, x1 = alike(x0=x0, x1=x1)
        eps = mx.random.normal(x1.shape, dtype=x1.dtype, key=check_key(key))
        return self.point(x0, x1, t, eps)

    def point(self, x0: mx.array, x1: mx.array, t: mx.array, eps: mx.array) -> PathSample:
        """Return x_t and its velocity u_t for given noise `eps` (batch, ...); else as `sample`."""
        x0, x1, eps = alike(x0=x0, x1=x1, eps=eps)
        t = path_time(t, x1)
        (a, b, c), (da, db, dc) = time_derivative(self.coefficients, expand_time(t, x1))
        xt = _combine((a, x1), (b, x0), (c, eps))
        ut = _combine((da, x1), (db, x0), (dc, eps))
        return PathSample(t, xt, ut, eps, eps if is_absent(b) else x0, x1)

    def velocity(self, t: mx.array, x: mx.array, x0: mx.array, x1: mx.array) -> mx.array:
        """Conditional velocity at any `x` (batch, ...): mean' + (gamma'/gamma) (x - mean).

        `mean` is alpha x1 + beta x0 (Lipman et al. 2023, Theorem 3). It is not finite at times at
        which gamma is 0, but for a path whose gamma is constant.
        """
        x, x0, x1 = alike(x=x, x0=x0, x1=x1)
        t = expand_time(path_time(t, x), x)
        (a, b, c), (da, db, dc) = time_derivative(self.coefficients, t)
        velocity = _combine((da, x1), (db, x0))
        if is_absent(dc):
            return velocity
        return velocity + dc / c * (x - _combine((a, x1), (b, x0)))


class Linear(AffinePath):
    """x_t = t x1 + (1 - t) x0 + sigma eps (Tong et al. 2024, arXiv 2302.00482, Eq. 14-15).

    With sigma = 0 also known as CondOT and rectified flow.
    """

    def coefficients(self, t):
        """Alpha = t, beta = 1 - t, gamma = sigma."""
        return t, 1 - t, self.sigma


class Trigonometric(AffinePath):
    """x_t = sin(pi t/2) x1 + cos(pi t/2) x0 + sigma eps, also known as cosine.

    Preserves variance where x0 and x1 have the same (Albergo & Vanden-Eijnden 2023, Eq. 5 and 21,
    with sigma = 0).
    """

    def coefficients(self, t):
        """Alpha = sin(pi t/2), beta = cos(pi t/2), gamma = sigma."""
        return *quarter_turn(t), self.sigma


@dataclass(frozen=True)
class Polynomial(AffinePath):
    """x_t = t^n x1 + (1 - t^n) x0 + sigma eps, for an integer n >= 1.

    For n >= 2 the velocity vanishes at t = 0 and says nothing of the data there: training times
    come from (margin, 1).
    """

    n: int = 2
    margin: float = 1e-3
    sigma: float = field(default=0.0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_margin(self.margin)
        object.__setattr__(self, "n", check_count(self.n, "n"))

    @property
    def interval(self) -> tuple[float, float]:
        """(margin, 1), or (0, 1) for n = 1."""
        return (self.margin, 1.0) if self.n > 1 else (0.0, 1.0)

    def coefficients(self, t):
        """Alpha = t^n, beta = 1 - t^n, gamma = sigma."""
        return t**self.n, _one_minus_power(t, self.n), self.sigma


@dataclass(frozen=True)
class LinearVP(AffinePath):
    """x_t = t x1 + sqrt(1 - t^2) x0 + sigma eps.

    Variance preserving, as Trigonometric, and as fast in alpha as Linear. The derivative of beta is
    infinite at t = 1, so training times come from (0, 1 - margin).
    """

    margin: float = 1e-5

    def __post_init__(self):
        super().__post_init__()
        check_margin(self.margin)

    @property
    def interval(self) -> tuple[float, float]:
        """(0, 1 - margin)."""
        return 0.0, 1 - self.margin

    def coefficients(self, t):
        """Alpha = t, beta = sqrt(1 - t^2), gamma = sigma."""
        return t, mx.sqrt(_one_minus_power(t, 2)), self.sigma


@dataclass(frozen=True)
class VPDiffusion(AffinePath):
    """The variance-preserving diffusion, x_t = alpha x1 + sqrt(1 - alpha^2) x0 + sigma eps.

    alpha = exp(-T/2) with T = beta_min s + (beta_max - beta_min) s^2 / 2 and s = 1 - t, the time of
    diffusion papers, in which s = 0 is the data (Ho et al. 2020, arXiv 2006.11239, in the
    continuous time of Song et al. 2021, arXiv 2011.13456). At t = 0 a little of the data is left:
    alpha(0) = 0.0066 for the defaults. The derivative of beta is infinite at t = 1, so training
    times come from (0, 1 - margin). Raises ValueError unless 0 < beta_min <= beta_max.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    margin: float = 1e-5
    sigma: float = field(default=0.0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_margin(self.margin)
        for name in ("beta_min", "beta_max"):
            self._number(name, "a number", math.isfinite)
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(
                f"beta_min is {self.beta_min} and beta_max {self.beta_max}; expected "
                "0 < beta_min <= beta_max, such as 0.1 and 20"
            )

    @property
    def interval(self) -> tuple[float, float]:
        """(0, 1 - margin)."""
        return 0.0, 1 - self.margin

    def coefficients(self, t):
        """Alpha = exp(-T/2), beta = sqrt(1 - exp(-T)), gamma = sigma."""
        s = 1 - t
        total = s * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * s)
        return mx.exp(-0.5 * total), mx.sqrt(-mx.expm1(-total)), self.sigma


class Target(AffinePath):
    """x_t = t x1 + (1 - (1 - sigma) t) eps: a Gaussian that shrinks onto each data point.

    Lipman et al. 2023, Eq. 20-23. The source is the path's own noise, N(0, I); x0 gives only a
    shape. The velocity is x1 - (1 - sigma) eps, which has no denominator to cancel near t = 1.
    """

    @property
    def gaussian_source(self) -> bool:
        """True: eps is the source."""
        return True

    def coefficients(self, t):
        """Alpha = t, beta = 0, gamma = 1 - (1 - sigma) t."""
        return t, 0.0, self.sigma + (1 - self.sigma) * (1 - t)


class OneSidedTrigonometric(AffinePath):
    """x_t = sin(pi t/2) x1 + (sigma + (1 - sigma) cos(pi t/2)) eps: Trigonometric as Target.

    A one-sided interpolant (Albergo, Boffi & Vanden-Eijnden 2023, arXiv 2303.08797), as Target is
    with the linear schedule: the source is the path's own noise, N(0, I), and x0 gives only a
    shape.
    """

    @property
    def gaussian_source(self) -> bool:
        """True: eps is the source."""
        return True

    def coefficients(self, t):
        """Alpha = sin(pi t/2), beta = 0, gamma = sigma + (1 - sigma) cos(pi t/2)."""
        sine, cosine = quarter_turn(t)
        return sine, 0.0, self.sigma + (1 - self.sigma) * cosine
