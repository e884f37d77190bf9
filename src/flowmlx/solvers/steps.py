"""One step of each method, and the value of the solution inside a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from flowmlx.solvers.tableaus import Tableau

# A state is carried as the list of its arrays; only the field sees the user's tree.
Leaves = list[mx.array]
Slope = Callable[[float, Leaves], Leaves]

# x + (x_next - x)(3 th^2 - 2 th^3) + h k (th - 2 th^2 + th^3) + h k_next (th^3 - th^2):
# Hairer, Norsett & Wanner I, II.6 (6.7). Rows as in Tableau.dense, increments x_next - x, k, k_next.
HERMITE = np.array([[0.0, 3.0, -2.0], [1.0, -2.0, 1.0], [0.0, -1.0, 1.0]])


@dataclass
class Step:
    """A step from (t, x) to (t_next, x_next) with the slopes of its stages.

    `k_next`: slope at the end of the step, None as long as nobody needed it.
    """

    tableau: Tableau
    t: float
    t_next: float
    x: Leaves
    x_next: Leaves
    slopes: list[Leaves]
    k_next: Leaves | None


def rk_step(field: Slope, tableau: Tableau, t: float, t_next: float, x: Leaves, k: Leaves) -> Step:
    """Take one explicit Runge-Kutta step; `k` is the slope at (t, x).

    Hairer, Norsett & Wanner I, II.1 (1.8).
    """
    h = t_next - t
    table = tableau.numbers
    slopes, stage = [k], x
    for c, a in zip(table.c[1:], table.a[1:], strict=True):
        stage = _add(x, weighted_sum([h * w for w in a], slopes))
        # t + h may round to a time outside the interval; t_next does not.
        slopes.append(field(t_next if c == 1 else t + c * h, stage))
    if tableau.fsal:
        return Step(tableau, t, t_next, x, stage, slopes, slopes[-1])
    x_next = _add(x, weighted_sum([h * w for w in table.b], slopes))
    return Step(tableau, t, t_next, x, x_next, slopes, None)


def error_estimate(step: Step) -> Leaves:
    """Difference between the propagated and the embedded solution at the end of `step`."""
    h = step.t_next - step.t
    assert step.tableau.numbers.error is not None
    return weighted_sum([h * w for w in step.tableau.numbers.error], step.slopes)


def interpolate(field: Slope, step: Step, times: Sequence[float]) -> Leaves:
    """Return the solution at `times` inside `step`, stacked along a new first axis.

    Uses the method's own dense output where it has one, else the cubic Hermite polynomial, which
    needs the slope at the end of the step (evaluated once, and kept for the next step).
    """
    h = step.t_next - step.t
    theta = (np.asarray(times) - step.t) / h
    dense = step.tableau.numbers.dense
    if dense is not None:
        weights, increments = h * _powers(theta, dense), step.slopes
    else:
        if step.k_next is None:
            step.k_next = field(step.t_next, step.x_next)
        rise = [b - a for a, b in zip(step.x, step.x_next, strict=True)]
        weights = _powers(theta, HERMITE) * (1.0, h, h)
        increments = [rise, step.slopes[0], step.k_next]
    return [
        x + sum(_column(w, x) * k for w, k in zip(weights.T, leaf, strict=True) if w.any())
        for x, *leaf in zip(step.x, *increments, strict=True)
    ]


def weighted_sum(weights: Sequence[float], slopes: list[Leaves]) -> Leaves:
    """Sum of `weights` times `slopes`, leaf by leaf; zero weights cost nothing."""
    used = [(w, k) for w, k in zip(weights, slopes, strict=True) if w != 0]
    (w, k), *rest = used
    total = [w * leaf for leaf in k]
    for w, k in rest:
        total = [s + w * leaf for s, leaf in zip(total, k, strict=True)]
    return total


def _add(x: Leaves, y: Leaves) -> Leaves:
    return [a + b for a, b in zip(x, y, strict=True)]


def _powers(theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Polynomials without constant term, coefficients `rows`, at `theta`: (times, rows)."""
    return theta[:, None] ** np.arange(1, rows.shape[1] + 1) @ rows.T


def _column(w: np.ndarray, x: mx.array) -> mx.array:
    """Weights (times,) shaped to multiply arrays like x: (times, 1, ...)."""
    return mx.array(w.reshape(-1, *(1,) * x.ndim), dtype=x.dtype)
