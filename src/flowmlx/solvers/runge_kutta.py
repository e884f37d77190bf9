"""Explicit Runge-Kutta methods as data: exact numbers, checked when a table is built."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import mlx.core as mx
import numpy as np

from flowmlx.solvers.dense import along, stretched
from flowmlx.solvers.stepper import Point, Slope, Step, Time

Row = tuple[Fraction, ...]

# A table given in decimals meets its own identities only to the digits that were published.
TOLERANCE = Fraction(1, 10**14)


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method with s stages.

    k_i = v(t + c_i h, x + h sum_j a_ij k_j) and x_next = x + h sum_i b_i k_i.

    `order`: of the propagated solution. `c`, `b`: s numbers. `a`: the rows below the diagonal, the
    first empty. `error`: weights of the error estimate (b minus the embedded b), with the order
    `error_order` of the embedded solution; None for a method that takes the steps it is told.
    `dense`: row i holds the coefficients of theta, theta^2, ... in the weight b_i(theta) of
    x(t + theta h) = x + h sum_i b_i(theta) k_i, of order `dense_order`; None for the cubic
    polynomial through both ends. `name`: for messages.
    Raises ValueError if the numbers contradict each other.
    """

    order: int
    c: Row
    a: tuple[Row, ...]
    b: Row
    error: Row | None = None
    error_order: int | None = None
    dense: tuple[Row, ...] | None = None
    dense_order: int = 3
    name: str = "tableau"

    def __post_init__(self):
        for i, (node, row) in enumerate(zip(self.c, self.a, strict=True)):
            if len(row) != i:
                raise ValueError(f"row {i} of a has {len(row)} entries; expected {i}")
            _check(f"sum of row {i} of a", sum(row), node)
        _check("sum of b", sum(self.b), 1)
        if (self.error is None) != (self.error_order is None):
            raise ValueError("error and error_order go together; expected both or none")
        if self.error is not None:
            _check("sum of the error weights", sum(self.error), 0)
        for i, row in enumerate(self.dense or ()):
            _check(f"dense weight {i} at theta = 1", sum(row), self.b[i])

    @property
    def stages(self) -> int:
        """Number of stages s."""
        return len(self.c)

    @cached_property
    def fsal(self) -> bool:
        """Whether the last stage is the slope at the end of the step (first same as last)."""
        return self.c[-1] == 1 and (*self.a[-1], Fraction(0)) == self.b

    @cached_property
    def numbers(self) -> "Numbers":
        """The table in floating point, arranged for a step."""
        rows = [
            *self.a[1:],
            *([] if self.fsal else [self.b]),
            *([self.error] if self.error else []),
        ]
        matrix = np.array([[*row, *[0] * (self.stages - len(row))] for row in rows], dtype=float)
        return Numbers(
            c=tuple(map(float, self.c)),
            matrix=matrix,
            dense=None if self.dense is None else np.array(self.dense, dtype=float),
        )

    def start(self, ts: Sequence[float], x0: mx.array) -> None:
        """A step knows nothing of those before."""

    def step(self, field: Slope, start: Point, t_next: Time, memory: None = None) -> Step:
        """Take one step.

        Hairer, Norsett & Wanner I, II.1 (1.8), with the sums over j taken column by column: a new
        slope is added at once to the increments of all later stages, of x_next and of the error.
        That is three operations for each stage, where sums row by row take two for each pair of
        stages.
        """
        t, x, k = start.t, start.x, start.slope(field)
        h, table = t_next - t, self.numbers
        weights = np.multiply.outer(table.matrix, h)
        slopes, stage = [k], x
        increments = along(weights[:, 0], x.ndim + 1, x.dtype) * k
        for j, c in enumerate(table.c[1:], start=1):
            first, increments = mx.split(increments, [1])
            stage = x + first.reshape(x.shape)
            # t + h may round to a time outside the interval; t_next does not.
            k = field(t_next if c == 1 else t + c * h, stage)
            field.begin(k)
            increments = increments + along(weights[j:, j], x.ndim + 1, x.dtype) * k
            slopes.append(k)
        if self.fsal:
            end = Point(t_next, stage, k)
        else:
            first, increments = mx.split(increments, [1])
            end = Point(t_next, x + first.reshape(x.shape))
        error = None if self.error is None else increments.reshape(x.shape)
        inside = None if table.dense is None else stretched(x, slopes, table.dense, h)
        return Step(start, end, error, inside)


@dataclass(frozen=True)
class Numbers:
    """A tableau in floating point.

    `matrix[i, j]`: weight of k_j in stage i + 1; the rows after the stages are x_next (where that
    is not the last stage) and the error estimate (where there is one). `dense`: as in the tableau.
    """

    c: tuple[float, ...]
    matrix: np.ndarray
    dense: np.ndarray | None


def _check(name: str, value: Fraction | int, expected: Fraction | int) -> None:
    if abs(value - expected) > TOLERANCE:
        raise ValueError(f"{name} is {float(value)}; expected {float(expected)}")
