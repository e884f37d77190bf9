"""One step of each method, and the solution inside a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from flowmlx.solvers.tableaus import HEUN, Adams, Tableau

# A state is carried as the list of its arrays; only the field sees the user's tree.
Leaves = list[mx.array]
# A float, or a float64 array with one for each sample where samples have steps of their own.
Time = Any
Slope = Callable[[Time, Leaves], Leaves]

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
    x: Leaves
    x_next: Leaves
    slopes: list[Leaves]
    k_next: Leaves | None = None
    error: Leaves | None = None
    dense: np.ndarray | None = None
    accepted: bool = True


def rk_step(field: Slope, tableau: Tableau, t: Time, t_next: Time, x: Leaves, k: Leaves) -> Step:
    """Take one explicit Runge-Kutta step; `k` is the slope at (t, x).

    Hairer, Norsett & Wanner I, II.1 (1.8), with the sums over j taken column by column: a new
    slope is added at once to the increments of all later stages, of x_next and of the error. That
    is three operations for each stage, where sums row by row take two for each pair of stages.
    """
    h = t_next - t
    table = tableau.numbers
    slopes, stage = [k], x
    increments = [outer(np.multiply.outer(table.columns[0], h), leaf) for leaf in k]
    for c, column in zip(table.c[1:], table.columns[1:], strict=True):
        stage, increments = _add_first(x, increments)
        # t + h may round to a time outside the interval; t_next does not.
        k = field(t_next if c == 1 else t + c * h, stage)
        weights = np.multiply.outer(column, h)
        increments = [i + outer(weights, leaf) for i, leaf in zip(increments, k, strict=True)]
        slopes.append(k)
    k_next = k if tableau.fsal else None
    if not tableau.fsal:
        stage, increments = _add_first(x, increments)
    error = None if tableau.error is None else [i[0] for i in increments]
    return Step(t, t_next, x, stage, slopes, k_next, error, table.dense)


def adams_step(
    field: Slope,
    method: Adams,
    t: float,
    t_next: float,
    x: Leaves,
    past: list[tuple[float, Leaves]],
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
    x_next = add(x, weighted_sum(adams_weights(nodes, t, t_next), slopes))
    if method.corrector:
        predicted = field(t_next, x_next)
        x_next = add(x, weighted_sum(adams_weights((t_next, t), t, t_next), (predicted, k)))
    return Step(t, t_next, x, x_next, [k])


def _wide(past: list[tuple[float, Leaves]], h: float) -> list[tuple[float, Leaves]]:
    """The newest slopes, as far back as they are no closer than a tenth of the step.

    A polynomial through closer ones amplifies rounding errors as it leaves them.
    """
    gaps = [abs(new[0] - old[0]) for new, old in pairwise(past)]
    close = [gap < abs(h) / 10 for gap in gaps]
    return past[: 1 + (close.index(True) if any(close) else len(close))]


def adams_weights(nodes: Sequence[float], t: float, t_next: float) -> np.ndarray:
    """Weights w with sum_i w_i p(nodes_i) = integral of p from t to t_next.

    Exact for polynomials p of a degree below the number of nodes.
    """
    h = t_next - t
    powers = np.arange(len(nodes))
    matrix = ((np.asarray(nodes) - t) / h) ** powers[:, None]
    return h * np.linalg.solve(matrix, 1 / (powers + 1))


def finish(field: Slope, step: Step) -> Step:
    """Make `step` ready for `interpolate`; evaluates the slope at its end if that is missing.

    The slope is kept for the next step, so it costs nothing but at the end of a solve.
    """
    if step.dense is None and step.k_next is None:
        step.k_next = field(step.t_next, step.x_next)
    return step


def interpolate(step: Step, times: Sequence[float]) -> Leaves:
    """Return the solution at `times` inside a finished step, stacked along a new first axis."""
    h = step.t_next - step.t
    rows, scale, increments = _basis(step)
    weights = scale * _polynomials((np.asarray(times) - step.t) / h, rows)
    return [x + _product(weights, leaf) for x, *leaf in zip(step.x, *increments, strict=True)]


def interpolate_samples(step: Step, samples: np.ndarray, times: np.ndarray) -> Leaves:
    """Return the solution of each of `samples` at its own time inside its own finished step.

    `samples`, `times`: (n,), indices into the batch and times. Returns leaves (n, ...).
    """
    h = step.t_next - step.t
    rows, scale, increments = _basis(step)
    theta = (times - step.t[samples]) / h[samples]
    weights = (scale[samples] * _polynomials(theta, rows)).T
    chosen, states = mx.array(samples), []
    for x, *leaf in zip(step.x, *increments, strict=True):
        changes = mx.stack(leaf)[:, chosen]
        states.append(
            x[chosen] + mx.sum(_aligned(weights, changes.ndim, x.dtype) * changes, axis=0)
        )
    return states


def _basis(step: Step) -> tuple[np.ndarray, np.ndarray, list[Leaves]]:
    """Dense output as polynomials in theta, one for each of some increments, and their scales.

    The method's own where it has one, else the cubic Hermite polynomial.
    """
    h = np.expand_dims(step.t_next - step.t, -1)
    if step.dense is not None:
        return step.dense, h, step.slopes
    assert step.k_next is not None
    rise = [b - a for a, b in zip(step.x, step.x_next, strict=True)]
    return HERMITE, np.where([False, True, True], h, 1.0), [rise, step.slopes[0], step.k_next]


def _polynomials(theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Polynomials without constant term, coefficients `rows`, at `theta`: (times, rows)."""
    return theta[:, None] ** np.arange(1, rows.shape[1] + 1) @ rows.T


def outer(weights: np.ndarray, x: mx.array) -> mx.array:
    """Weights (n,) or (n, batch) times x: (n, *x.shape)."""
    return _aligned(weights, x.ndim + 1, x.dtype) * x


def add(x: Leaves, y: Leaves) -> Leaves:
    """Sum, leaf by leaf."""
    return [a + b for a, b in zip(x, y, strict=True)]


def weighted_sum(weights: np.ndarray, slopes: Sequence[Leaves]) -> Leaves:
    """Sum of `weights` times `slopes`, leaf by leaf."""
    (w, k), *rest = zip(weights.tolist(), slopes, strict=True)
    total = [w * leaf for leaf in k]
    for w, k in rest:
        total = add(total, [w * leaf for leaf in k])
    return total


def _add_first(x: Leaves, increments: Leaves) -> tuple[Leaves, Leaves]:
    """Return x plus the first row of `increments`, and the other rows."""
    heads, tails = zip(*(mx.split(i, [1]) for i in increments), strict=True)
    return [a + head.reshape(a.shape) for a, head in zip(x, heads, strict=True)], list(tails)


def _product(weights: np.ndarray, xs: Sequence[mx.array]) -> mx.array:
    """Weights (m, n) times n arrays: (m, *x.shape)."""
    if mx.default_device() == mx.Device(mx.cpu):
        rows = mx.stack(list(xs)).reshape(len(xs), -1)
        return (mx.array(weights, dtype=rows.dtype) @ rows).reshape(-1, *xs[0].shape)
    # Matrix products on a GPU may round to ten bits (TF32); sums of products do not.
    first, *rest = (outer(w, x) for w, x in zip(weights.T, xs, strict=True))
    return sum(rest, start=first)


def _aligned(weights: np.ndarray, ndim: int, dtype: mx.Dtype) -> mx.array:
    """Weights as an array of `ndim` axes, its own axes first."""
    shape = (*weights.shape, *(1,) * (ndim - weights.ndim))
    return mx.array(weights, dtype=dtype).reshape(shape)
