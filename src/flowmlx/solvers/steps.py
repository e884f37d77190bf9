"""One step of each method, and the solution inside a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from flowmlx.solvers.tableaus import Tableau

# A state is carried as the list of its arrays; only the field sees the user's tree.
Leaves = list[mx.array]
Slope = Callable[[float, Leaves], Leaves]

# x(t + theta h) - x = (x_next - x)(3 theta^2 - 2 theta^3) + h k (theta - 2 theta^2 + theta^3)
# + h k_next (theta^3 - theta^2): Hairer, Norsett & Wanner I, II.6 (6.7). Rows as in Tableau.dense.
HERMITE = np.array([[0.0, 3.0, -2.0], [1.0, -2.0, 1.0], [0.0, -1.0, 1.0]])


@dataclass
class Step:
    """A step from (t, x) to (t_next, x_next) with the slopes of its stages.

    `error`: estimate of the error in x_next, None for methods without one. `k_next`: slope at the
    end of the step, None as long as nobody needed it.
    """

    tableau: Tableau
    t: float
    t_next: float
    x: Leaves
    x_next: Leaves
    slopes: list[Leaves]
    error: Leaves | None
    k_next: Leaves | None


def rk_step(field: Slope, tableau: Tableau, t: float, t_next: float, x: Leaves, k: Leaves) -> Step:
    """Take one explicit Runge-Kutta step; `k` is the slope at (t, x).

    Hairer, Norsett & Wanner I, II.1 (1.8), with the sums over j taken column by column: a new
    slope is added at once to the increments of all later stages, of x_next and of the error. That
    is three operations for each stage, where sums row by row take two for each pair of stages.
    """
    h = t_next - t
    table = tableau.numbers
    slopes, increments = [k], [_outer(h * table.columns[0], leaf) for leaf in k]
    for c, column in zip(table.c[1:], table.columns[1:], strict=True):
        stage, increments = _add_first(x, increments)
        # t + h may round to a time outside the interval; t_next does not.
        k = field(t_next if c == 1 else t + c * h, stage)
        increments = [i + _outer(h * column, leaf) for i, leaf in zip(increments, k, strict=True)]
        slopes.append(k)
    if tableau.fsal:
        x_next, k_next = stage, k
    else:
        x_next, increments = _add_first(x, increments)
        k_next = None
    error = None if tableau.error is None else [i[0] for i in increments]
    return Step(tableau, t, t_next, x, x_next, slopes, error, k_next)


def interpolate(field: Slope, step: Step, times: Sequence[float]) -> Leaves:
    """Return the solution at `times` inside `step`, stacked along a new first axis.

    Uses the method's own dense output where it has one, else the cubic Hermite polynomial, which
    needs the slope at the end of the step (evaluated once, and kept for the next step).
    """
    h = step.t_next - step.t
    theta = (np.asarray(times) - step.t) / h
    dense = step.tableau.numbers.dense
    if dense is not None:
        weights, increments = h * _polynomials(theta, dense), step.slopes
    else:
        if step.k_next is None:
            step.k_next = field(step.t_next, step.x_next)
        rise = [b - a for a, b in zip(step.x, step.x_next, strict=True)]
        weights = _polynomials(theta, HERMITE) * (1.0, h, h)
        increments = [rise, step.slopes[0], step.k_next]
    return [x + _product(weights, leaf) for x, *leaf in zip(step.x, *increments, strict=True)]


def _outer(weights: np.ndarray, x: mx.array) -> mx.array:
    """Weights (n,) times x: (n, *x.shape)."""
    return mx.array(weights.tolist(), dtype=x.dtype).reshape(-1, *(1,) * x.ndim) * x


def _add_first(x: Leaves, increments: Leaves) -> tuple[Leaves, Leaves]:
    """Return x plus the first row of `increments`, and the other rows."""
    heads, tails = zip(*(mx.split(i, [1]) for i in increments), strict=True)
    return [a + head.reshape(a.shape) for a, head in zip(x, heads, strict=True)], list(tails)


def _product(weights: np.ndarray, xs: list[mx.array]) -> mx.array:
    """Weights (m, n) times n arrays: (m, *x.shape)."""
    if mx.default_device() == mx.Device(mx.cpu):
        rows = mx.stack(xs).reshape(len(xs), -1)
        return (mx.array(weights, dtype=rows.dtype) @ rows).reshape(-1, *xs[0].shape)
    # Matrix products on a GPU may round to ten bits (TF32); sums of products do not.
    return sum((_outer(w, x) for w, x in zip(weights.T, xs, strict=True)), start=mx.array(0.0))


def _polynomials(theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Polynomials without constant term, coefficients `rows`, at `theta`: (times, rows)."""
    return theta[:, None] ** np.arange(1, rows.shape[1] + 1) @ rows.T
