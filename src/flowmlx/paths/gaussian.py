"""Gaussian paths given by functions: a mean and a standard deviation at each time."""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from flowmlx.paths.path import PathSample, alike, expand_time, path_time, time_derivative
from flowmlx.solvers.arrays import check_callable, check_key, check_returned


@dataclass(frozen=True)
class GaussianPath:
    """The path N(mean(t, x0, x1), std(t, x0, x1)^2) for functions of your own.

    `mean` and `std` get `t` in the shape (batch, 1, ...) and return arrays that broadcast against
    x1. For a path that starts from its own Gaussian noise in place of x0, give a mean of 0 and a
    std of 1 at t = 0, and set `gaussian_source=True`. `interval`: where training times come from;
    narrow it where `std` has an infinite derivative. The velocity is that of Lipman et al. 2023,
    Theorem 3, by automatic differentiation.
    """

    mean: Callable[[mx.array, mx.array, mx.array], mx.array]
    std: Callable[[mx.array, mx.array, mx.array], mx.array | float]
    interval: tuple[float, float] = (0.0, 1.0)
    gaussian_source: bool = False

    def __post_init__(self):
        check_callable(self.mean, "mean", "mean(t, x0, x1)")
        check_callable(self.std, "std", "std(t, x0, x1)")

    def _moments(self, x0, x1, t):
        def moments(t):
            values = self.mean(t, x0, x1), self.std(t, x0, x1)
            for name, value in zip(("mean", "std"), values, strict=True):
                if not isinstance(value, int | float):
                    check_returned(value, f"{name}(t, x0, x1)")
            return values

        t = path_time(t, x1)
        t = mx.broadcast_to(expand_time(t, x1), (x1.shape[0], *([1] * (x1.ndim - 1))))
        return time_derivative(moments, t)

    def sample(self, x0: mx.array, x1: mx.array, t: mx.array, *, key: mx.array) -> PathSample:
        """Draw x_t = mean + std eps and its velocity mean' + std' eps.

        `x0`, `x1`: (batch, ...), the same shape; `t`: scalar or (batch,); `key`: for eps.
        Raises ValueError where shapes do not match.
        """
        x0, x1 = alike(x0=x0, x1=x1)
        t, eps = path_time(t, x1), mx.random.normal(x1.shape, dtype=x1.dtype, key=check_key(key))
        (mean, std), (dmean, dstd) = self._moments(x0, x1, t)
        source = eps if self.gaussian_source else x0
        return PathSample(t, mean + std * eps, dmean + dstd * eps, eps, source, x1)

    def velocity(self, t: mx.array, x: mx.array, x0: mx.array, x1: mx.array) -> mx.array:
        """Conditional velocity at any `x` (batch, ...): (std'/std) (x - mean) + mean'.

        Needs std > 0; it is not finite where std is 0.
        """
        x, x0, x1 = alike(x=x, x0=x0, x1=x1)
        (mean, std), (dmean, dstd) = self._moments(x0, x1, t)
        return dstd / std * (x - mean) + dmean
