"""What a solve returns."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.solvers.arrays import as_numpy
from flowmlx.solvers.inputs import Field
from flowmlx.solvers.steps import Step, interpolate


class Stats(NamedTuple):
    """Evaluations of the field; accepted and rejected steps; smallest and largest |dt| accepted."""

    nfe: int
    accepted: Any
    rejected: Any
    smallest_step: Any
    largest_step: Any


@dataclass(frozen=True)
class Dense:
    """The solution between the ends of a solve: its steps, in order."""

    field: Field
    steps: list[Step]

    def __call__(self, t: Any) -> Any:
        """States at `t`; see `Solution`."""
        times = as_numpy(t, "t", np.float64)
        start, end = self.steps[0].t, self.steps[-1].t_next
        sign = 1 if end > start else -1
        if not (np.minimum(start, end) <= times).all() or not (times <= max(start, end)).all():
            raise ValueError(f"t is {t!r}; expected times between {start!r} and {end!r}")
        flat = times.reshape(-1)
        owner = np.searchsorted([sign * s.t_next for s in self.steps], sign * flat)
        order = np.argsort(owner, kind="stable")
        pieces = [interpolate(self.steps[n], flat[owner == n].tolist()) for n in np.unique(owner)]
        back = mx.array(np.argsort(order))
        xs = mx.concatenate(pieces)[back]
        return self.field.tree(xs.reshape(*times.shape, *xs.shape[1:]))


class _Solution(NamedTuple):
    ts: mx.array
    xs: Any
    stats: Stats
    status: Any


class Solution(_Solution):
    """States `xs` at the times `ts` (time first: xs[k] is the state at ts[k]).

    After odeint(..., dense=True) `solution(t)` gives the state at any t between the first and the
    last time reached: t of any shape gives states (*t.shape, *x.shape). Raises ValueError for times
    outside. Unpacks as `ts, xs, stats, status`; `dense` holds the steps that were kept, or None.
    """

    dense: Dense | None = None

    def __new__(cls, ts: mx.array, xs: Any, stats: Stats, status: Any, dense: Dense | None = None):
        """Bundle the four, and keep `dense` beside them."""
        solution = super().__new__(cls, ts, xs, stats, status)
        solution.dense = dense
        return solution

    def __call__(self, t: Any) -> Any:
        """State at `t`, which may be an array of times."""
        if self.dense is None:
            raise ValueError("the steps were not kept; write odeint(..., dense=True)")
        return self.dense(t)
