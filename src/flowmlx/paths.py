"""Probability paths: how a point travels from the source (t = 0) to the data (t = 1).

An affine path is three coefficients of time,

    x_t = alpha(t) x1 + beta(t) x0 + gamma(t) eps,        eps ~ N(0, I),

and its velocity is the time derivative of x_t at fixed (x0, x1, eps). Only the coefficients are
written down; their derivatives come from automatic differentiation. To add a path, subclass
`AffinePath`, write `coefficients`, and enter it in `PATHS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import mlx.core as mx


class PathSample(NamedTuple):
    """A point on a path: time `t` (batch,), point `xt`, velocity `ut`, noise `eps` (batch, ...)."""

    t: mx.array
    xt: mx.array
    ut: mx.array
    eps: mx.array


class Path(Protocol):
    """What training asks of a path; `AffinePath` and `GaussianPath` provide it."""

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds that training times come from; inside (0, 1) where an end is singular."""
        ...

    @property
    def gaussian_source(self) -> bool:
        """Whether the path brings its own N(0, I) source and ignores x0."""
        ...

    def sample(self, x0: mx.array, x1: mx.array, t: mx.array, *, key: mx.array) -> PathSample:
        """Draw x_t and its velocity for paired `x0`, `x1` (batch, ...) at times `t` (batch,)."""
        ...


def expand_time(t: mx.array, x: mx.array) -> mx.array:
    """Give `t`, a scalar or (batch,), trailing axes of length 1 so that it broadcasts over `x`.

    Raises ValueError where `t` is neither.
    """
    if t.ndim == 0:
        return t
    if t.ndim != 1 or t.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"t has shape {t.shape}; expected a scalar or ({x.shape[0]},), one time per sample of x"
        )
    return t.reshape(-1, *([1] * (x.ndim - 1)))


def time_derivative(f: Callable, t: mx.array) -> tuple[list, list]:
    """Values and elementwise time derivatives of `f(t) -> tuple of arrays or floats`.

    A float stands for a constant and has derivative 0.0. Exact only where element k of each output
    depends on element k of `t` alone, which holds for any function that treats the samples of a
    batch independently.
    """
    values = list(f(t))
    derivatives: list[mx.array | float] = [0.0] * len(values)
    varying = [k for k, value in enumerate(values) if isinstance(value, mx.array)]
    if varying:
        _, tangents = mx.jvp(lambda t: [f(t)[k] for k in varying], [t], [mx.ones_like(t)])
        for k, tangent in zip(varying, tangents, strict=True):
            derivatives[k] = tangent
    return values, derivatives


def _combine(*terms: tuple[mx.array | float, mx.array]) -> mx.array:
    """Sum of coefficient times array, without the terms that are zero for all times.

    Leaving them out means that noise which is not used is never drawn.
    """
    present = [c * x for c, x in terms if not (isinstance(c, (int, float)) and c == 0)]
    return sum(present[1:], present[0]) if present else mx.zeros_like(terms[0][1])


def _check_pair(x0: mx.array, x1: mx.array) -> None:
    if x0.shape != x1.shape:
        raise ValueError(
            f"x0 has shape {x0.shape} and x1 {x1.shape}; a path joins them one to one, so give two "
            "arrays of the same shape (batch, ...)"
        )


def _check_sigma(sigma: float) -> None:
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma is {sigma}; expected a finite number >= 0, such as 0.1")


@dataclass(frozen=True)
class AffinePath:
    """Base of the affine paths; subclasses define `coefficients(t) -> (alpha, beta, gamma)`.

    `sigma` is the standard deviation of the path's noise, in the units of the data (0: no noise).
    Raises ValueError where sigma is negative or not finite.
    """

    sigma: float = 0.0

    def __post_init__(self):
        _check_sigma(self.sigma)

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds that training times come from."""
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
        _check_pair(x0, x1)
        eps = mx.random.normal(x1.shape, dtype=x1.dtype, key=key)
        (a, b, c), (da, db, dc) = time_derivative(self.coefficients, expand_time(t, x1))
        xt = _combine((a, x1), (b, x0), (c, eps))
        return PathSample(t, xt, _combine((da, x1), (db, x0), (dc, eps)), eps)


class Linear(AffinePath):
    """x_t = t x1 + (1 - t) x0 + sigma eps (Tong et al. 2024, arXiv 2302.00482, Eq. 14-15)."""

    def coefficients(self, t):
        """Alpha = t, beta = 1 - t, gamma = sigma."""
        return t, 1 - t, self.sigma


class Trigonometric(AffinePath):
    """x_t = sin(pi t/2) x1 + cos(pi t/2) x0 + sigma eps.

    Preserves variance where x0 and x1 have the same (Albergo & Vanden-Eijnden 2023, Eq. 5 and 21,
    with sigma = 0).
    """

    def coefficients(self, t):
        """Alpha = sin(pi t/2), beta = cos(pi t/2), gamma = sigma."""
        return mx.sin(0.5 * math.pi * t), mx.cos(0.5 * math.pi * t), self.sigma


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
        return t, 0.0, 1 - (1 - self.sigma) * t


@dataclass(frozen=True)
class Bridge(AffinePath):
    """x_t = t x1 + (1 - t) x0 + sigma sqrt(t (1 - t)) eps, a Brownian bridge.

    Tong et al. 2024, arXiv 2302.00482, Eq. 20-21. The derivative of gamma is infinite at both ends,
    so training times come from (margin, 1 - margin).
    """

    sigma: float = 1.0
    margin: float = 1e-3

    @property
    def interval(self) -> tuple[float, float]:
        """(margin, 1 - margin)."""
        return self.margin, 1 - self.margin

    def coefficients(self, t):
        """Alpha = t, beta = 1 - t, gamma = sigma sqrt(t (1 - t))."""
        return t, 1 - t, self.sigma * mx.sqrt(t * (1 - t))


@dataclass(frozen=True)
class GaussianPath:
    """The path N(mean(t, x0, x1), std(t, x0, x1)^2) for functions of your own.

    `mean` and `std` receive `t` already shaped (batch, 1, ...) and return arrays that broadcast
    against x1. Where both depend on x0 the path runs from x0 to x1; a `mean` without x0 and a `std`
    of 1 at t = 0 make a path with a Gaussian source (set `gaussian_source=True`).
    `interval` is where training times come from; narrow it where `std` has an infinite derivative.
    The velocity is that of Lipman et al. 2023, Theorem 3, by automatic differentiation.
    """

    mean: Callable[[mx.array, mx.array, mx.array], mx.array]
    std: Callable[[mx.array, mx.array, mx.array], mx.array | float]
    interval: tuple[float, float] = (0.0, 1.0)
    gaussian_source: bool = False

    def _moments(self, x0, x1, t):
        def moments(t):
            return self.mean(t, x0, x1), self.std(t, x0, x1)

        t = mx.broadcast_to(expand_time(t, x1), (x1.shape[0], *([1] * (x1.ndim - 1))))
        return time_derivative(moments, t)

    def sample(self, x0: mx.array, x1: mx.array, t: mx.array, *, key: mx.array) -> PathSample:
        """Draw x_t = mean + std eps and its velocity mean' + std' eps.

        `x0`, `x1`: (batch, ...), the same shape; `t`: scalar or (batch,); `key`: for eps.
        Raises ValueError where shapes do not match.
        """
        _check_pair(x0, x1)
        eps = mx.random.normal(x1.shape, dtype=x1.dtype, key=key)
        (mean, std), (dmean, dstd) = self._moments(x0, x1, t)
        return PathSample(t, mean + std * eps, dmean + dstd * eps, eps)

    def velocity(self, t: mx.array, x: mx.array, x0: mx.array, x1: mx.array) -> mx.array:
        """Conditional velocity at any `x` (batch, ...): (std'/std) (x - mean) + mean'.

        Needs std > 0; it is not finite where std is 0.
        """
        (mean, std), (dmean, dstd) = self._moments(x0, x1, t)
        return dstd / std * (x - mean) + dmean


PATHS: dict[str, type[AffinePath]] = {
    "linear": Linear,
    "trigonometric": Trigonometric,
    "target": Target,
    "bridge": Bridge,
}
