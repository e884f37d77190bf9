"""The solution inside a step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.solvers.arrays import samplewise
from flowmlx.solvers.stepper import Inside, Slope, Step, Time

# x(t + theta h) - x = (x_next - x)(3 theta^2 - 2 theta^3) + h k (theta - 2 theta^2 + theta^3)
# + h k_next (theta^3 - theta^2): Hairer, Norsett & Wanner I, II.6 (6.7). Rows as in Polynomials.
HERMITE = np.array([[0.0, 3.0, -2.0], [1.0, -2.0, 1.0], [0.0, -1.0, 1.0]])


class Polynomials(NamedTuple):
    """x + sum_i scale_i p_i(theta) increment_i, for shares theta of a step.

    `rows[i]`: the coefficients of theta, theta^2, ... in p_i. `scale`: one number, a number for
    each i, or (batch, 1 or i) where every sample has steps of its own.
    """

    x: mx.array
    increments: list[mx.array]
    rows: np.ndarray
    scale: Any

    def __call__(self, theta: np.ndarray) -> mx.array:
        """States at shares `theta` (n,): (n, *x.shape)."""
        powers = np.multiply.accumulate(np.tile(theta[:, None], self.rows.shape[1]), axis=1)
        weights = np.column_stack([np.ones(len(theta)), self.scale * (powers @ self.rows.T)])
        return _product(weights, [self.x, *self.increments])

    def of_samples(self, samples: np.ndarray, theta: np.ndarray) -> mx.array:
        """States of `samples`, indices (n,), each at a share of its own step: (n, *x.shape[1:])."""
        x, rows = self.x, self.rows
        scales = np.broadcast_to(self.scale, (len(x), len(rows))).T
        weights = [np.multiply.outer(row, scale) for row, scale in zip(rows, scales, strict=True)]
        factors = [along(w, x.ndim + 1, x.dtype) for w in weights]
        changes = weighted_sum(factors, self.increments)
        # Coefficients of one sample side by side: gathering them is then a copy of rows.
        coefficients = mx.contiguous(mx.moveaxis(mx.concatenate([x[None], changes]), 0, 1))
        chosen, share = coefficients[mx.array(samples)], along(theta, x.ndim, x.dtype)
        states = chosen[:, -1]
        for power in reversed(range(rows.shape[1])):
            states = states * share + chosen[:, power]
        return states


def stretched(x: mx.array, slopes: list[mx.array], rows: np.ndarray, h: Time) -> Polynomials:
    """x + h sum_i p_i(theta) slope_i: dense output as Runge-Kutta methods have it."""
    return Polynomials(x, slopes, rows, h[:, None] if isinstance(h, np.ndarray) else h)


def hermite(field: Slope, step: Step) -> Polynomials:
    """The cubic polynomial through the states and slopes of both ends."""
    start, end = step.start, step.end
    h = np.expand_dims(end.t - start.t, -1)
    increments = [end.x - start.x, start.slope(field), end.slope(field)]
    return Polynomials(start.x, increments, HERMITE, np.where([False, True, True], h, 1.0))


def solution_inside(field: Slope, step: Step) -> Inside:
    """The solution inside a step; evaluates the slope at its end where that is needed and missing.

    The next step starts from that slope, so it costs nothing but at the end of a solve.
    """
    if step.inside is None:
        step.inside = hermite(field, step)
    return step.inside


def interpolate(field: Slope, step: Step, times: Sequence[float]) -> mx.array:
    """The states at `times` inside a step: (times, *x.shape)."""
    t, t_next = step.start.t, step.end.t
    return solution_inside(field, step)((np.asarray(times) - t) / (t_next - t))


def along(weights: np.ndarray, ndim: int, dtype: mx.Dtype) -> mx.array:
    """Weights as an array of `ndim` axes, its own axes first."""
    shape = (*weights.shape, *(1,) * (ndim - weights.ndim))
    return mx.array(weights.reshape(shape), dtype=dtype)


def weighted_sum(weights: Sequence, xs: Sequence[mx.array]) -> mx.array:
    """Sum of weights, numbers or arrays that broadcast, times arrays."""
    first, *rest = (w * x for w, x in zip(weights, xs, strict=True))
    return sum(rest, start=first)


def _product(weights: np.ndarray, xs: list[mx.array]) -> mx.array:
    """Weights (m, n) times n arrays: (m, *x.shape)."""
    x = xs[0]
    if mx.default_device().type == mx.cpu:
        rows = samplewise(mx.stack(xs))
        return (mx.array(weights, dtype=x.dtype) @ rows).reshape(len(weights), *x.shape)
    # Matrix products on a GPU may round to ten bits (TF32); sums of products do not.
    return weighted_sum([along(w, x.ndim + 1, x.dtype) for w in weights.T], xs)
