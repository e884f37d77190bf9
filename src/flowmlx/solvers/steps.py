"""One step of each method, and the solution inside a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from flowmlx.solvers.arrays import samplewise
from flowmlx.solvers.tableaus import HEUN, Adams, Tableau

# A float, or a float64 array with one for each sample where samples have steps of their own.
Time = Any
Slope = Callable[[Time, mx.array], mx.array]

# x(t + theta h) - x = (x_next - x)(3 theta^2 - 2 theta^3) + h k (theta - 2 theta^2 + theta^3)
# + h k_next (theta^3 - theta^2): Hairer, Norsett & Wanner I, II.6 (6.7). Rows as in Tableau.dense.
HERMITE = np.array([[0.0, 3.0, -2.0], [1.0, -2.0, 1.0], [0.0, -1.0, 1.0]])


@dataclass
class Step:
    """A step from (t, x) to (t_next, x_next).

    `slopes`: of its stages, the first at (t, x). `k_next`: slope at the end, None as long as nobody
    needed it. `error`: estimate of the error in x_next, None for methods without one. `dense`: as
    in Tableau. `accepted`: whether the solve goes on from x_next.
    """

    t: Time
    t_next: Time
    x: mx.array
    x_next: mx.array
    slopes: list[mx.array]
    k_next: mx.array | None = None
    error: mx.array | None = None
    dense: np.ndarray | None = None
    accepted: bool = True


def rk_step(
    field: Slope, tableau: Tableau, t: Time, t_next: Time, x: mx.array, k: mx.array
) -> Step:
    """Take one explicit Runge-Kutta step; `k` is the slope at (t, x).

    Hairer, Norsett & Wanner I, II.1 (1.8), with the sums over j taken column by column: a new
    slope is added at once to the increments of all later stages, of x_next and of the error. That
    is three operations for each stage, where sums row by row take two for each pair of stages.
    """
    h = t_next - t
    table = tableau.numbers
    weights = np.multiply.outer(table.matrix, h)
    slopes, stage = [k], x
    increments = along(weights[:, 0], x.ndim + 1, x.dtype) * k
    for j, c in enumerate(table.c[1:], start=1):
        first, increments = mx.split(increments, [1])
        stage = x + first.reshape(x.shape)
        # t + h may round to a time outside the interval; t_next does not.
        k = field(t_next if c == 1 else t + c * h, stage)
        increments = increments + along(weights[j:, j], x.ndim + 1, x.dtype) * k
        slopes.append(k)
    if tableau.fsal:
        x_next, k_next = stage, k
    else:
        first, increments = mx.split(increments, [1])
        x_next, k_next = x + first.reshape(x.shape), None
    error = None if tableau.error is None else increments.reshape(x.shape)
    return Step(t, t_next, x, x_next, slopes, k_next, error, table.dense)


def adams_step(
    field: Slope,
    method: Adams,
    t: float,
    t_next: float,
    x: mx.array,
    past: list[tuple[float, mx.array]],
) -> Step:
    """Take one Adams-Bashforth step through the slopes of `past`, the newest of them at (t, x).

    With a corrector, the slope at the predicted state joins the trapezoidal rule, and the next step
    starts from the slope at the corrected state (PECE). Steps may differ in length. Without a past,
    as at the start, the step is Heun's. Hairer, Norsett & Wanner I, III.1 and III.5.
    """
    k = past[0][1]
    past = _wide(past, t_next - t)
    if len(past) == 1:
        return rk_step(field, HEUN, t, t_next, x, k)
    nodes, slopes = zip(*past, strict=True)
    x_next = x + _weighted_sum(adams_weights(nodes, t, t_next), slopes)
    if method.corrector:
        predicted = field(t_next, x_next)
        x_next = x + _weighted_sum(adams_weights((t_next, t), t, t_next), (predicted, k))
    return Step(t, t_next, x, x_next, [k])


def adams_weights(nodes: Sequence[float], t: float, t_next: float) -> list[float]:
    """Weights w with sum_i w_i p(nodes_i) = integral of p from t to t_next.

    Exact for polynomials p of a degree below the number of nodes.
    """
    h = t_next - t
    powers = np.arange(len(nodes))
    matrix = ((np.asarray(nodes) - t) / h) ** powers[:, None]
    return (h * np.linalg.solve(matrix, 1 / (powers + 1))).tolist()


def _wide(past: list[tuple[float, mx.array]], h: float) -> list[tuple[float, mx.array]]:
    """The newest slopes, as far back as they are no closer than a tenth of the step.

    A polynomial through closer ones amplifies rounding errors as it leaves them.
    """
    gaps = [abs(new[0] - old[0]) for new, old in pairwise(past)]
    close = [gap < abs(h) / 10 for gap in gaps]
    return past[: 1 + (close.index(True) if any(close) else len(close))]


def take_step(
    field: Slope,
    method: Tableau | Adams,
    t: float,
    t_next: float,
    x: mx.array,
    past: list[tuple[float, mx.array]],
) -> Step:
    """Take one step of any method; `past` as in `adams_step`."""
    if isinstance(method, Adams):
        return adams_step(field, method, t, t_next, x, past)
    return rk_step(field, method, t, t_next, x, past[0][1])


def slopes_of(method: Tableau | Adams) -> int:
    """Number of slopes at the ends of steps that a step needs in `past`."""
    return method.order if isinstance(method, Adams) else 1


def finish(field: Slope, step: Step) -> Step:
    """Make `step` ready for `interpolate`; evaluates the slope at its end if that is missing.

    The slope is kept for the next step, so it costs nothing but at the end of a solve.
    """
    if step.dense is None and step.k_next is None:
        step.k_next = field(step.t_next, step.x_next)
    return step


def interpolate(step: Step, times: Sequence[float]) -> mx.array:
    """Return the solution at `times` inside a finished step: (times, *x.shape)."""
    rows, scale, increments = _basis(step)
    theta = (np.asarray(times) - step.t) / (step.t_next - step.t)
    weights = np.column_stack([np.ones(len(theta)), scale * _polynomials(theta, rows)])
    return _product(weights, [step.x, *increments])


def interpolate_samples(step: Step, samples: np.ndarray, times: np.ndarray) -> mx.array:
    """Return the solution of each of `samples` at its own time inside its own finished step.

    `samples`, `times`: (n,), indices into the batch and times. Returns (n, *x.shape[1:]).
    """
    rows, scale, increments = _basis(step)
    x = step.x
    scales = np.broadcast_to(scale, (len(x), len(rows))).T
    weights = [np.multiply.outer(row, scale) for row, scale in zip(rows, scales, strict=True)]
    changes = _weighted_sum([along(w, x.ndim + 1, x.dtype) for w in weights], increments)
    # Coefficients of one sample side by side: gathering them is then a copy of rows.
    coefficients = mx.contiguous(mx.moveaxis(mx.concatenate([x[None], changes]), 0, 1))
    chosen = coefficients[mx.array(samples)]
    theta = along((times - step.t[samples]) / (step.t_next - step.t)[samples], x.ndim, x.dtype)
    states = chosen[:, -1]
    for power in reversed(range(rows.shape[1])):
        states = states * theta + chosen[:, power]
    return states


def along(weights: np.ndarray, ndim: int, dtype: mx.Dtype) -> mx.array:
    """Weights as an array of `ndim` axes, its own axes first."""
    shape = (*weights.shape, *(1,) * (ndim - weights.ndim))
    return mx.array(weights.reshape(shape), dtype=dtype)


def _basis(step: Step) -> tuple[np.ndarray, np.ndarray, list[mx.array]]:
    """Dense output as polynomials in theta, one for each of some increments, and their scales.

    The method's own where it has one, else the cubic Hermite polynomial.
    """
    h = np.expand_dims(step.t_next - step.t, -1)
    if step.dense is not None:
        return step.dense, h, step.slopes
    assert step.k_next is not None
    increments = [step.x_next - step.x, step.slopes[0], step.k_next]
    return HERMITE, np.where([False, True, True], h, 1.0), increments


def _polynomials(theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Polynomials without constant term, coefficients `rows`, at `theta`: (times, rows)."""
    powers = np.multiply.accumulate(np.tile(theta[:, None], rows.shape[1]), axis=1)
    return powers @ rows.T


def _product(weights: np.ndarray, xs: list[mx.array]) -> mx.array:
    """Weights (m, n) times n arrays: (m, *x.shape)."""
    x = xs[0]
    if mx.default_device().type == mx.cpu:
        rows = samplewise(mx.stack(xs))
        return (mx.array(weights, dtype=x.dtype) @ rows).reshape(len(weights), *x.shape)
    # Matrix products on a GPU may round to ten bits (TF32); sums of products do not.
    return _weighted_sum([along(w, x.ndim + 1, x.dtype) for w in weights.T], xs)


def _weighted_sum(weights: Sequence, xs: Sequence[mx.array]) -> mx.array:
    """Sum of weights, numbers or arrays that broadcast, times arrays."""
    first, *rest = (w * x for w, x in zip(weights, xs, strict=True))
    return sum(rest, start=first)
