"""What a solve returns."""

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.solvers.arrays import as_numpy
from flowmlx.solvers.dense import interpolate
from flowmlx.solvers.inputs import Field, seen
from flowmlx.solvers.stepper import Step
from flowmlx.solvers.times import with_times
from flowmlx.solvers.tracing import all_finite


class Stats(NamedTuple):
    """Evaluations of the field; accepted and rejected steps; smallest and largest |dt| accepted."""

    nfe: int
    accepted: Any
    rejected: Any
    smallest_step: Any
    largest_step: Any


@dataclass(frozen=True)
class Dense:
    """The solution from `start` to `end`: its steps, in order."""

    field: Field
    steps: list[Step]
    start: float
    end: float

    def __call__(self, t: Any) -> Any:
        """States at `t`; see `Solution`."""
        times = as_numpy(t, "t", np.float64)
        low, high = sorted((self.start, self.end))
        # A time that the field cannot tell from the last is as good as that.
        lowest, given, highest = (seen(u, self.field.time_dtype) for u in (low, times, high))
        if not ((lowest <= given) & (given <= highest)).all():
            raise ValueError(f"t is {t!r}; expected times between {low!r} and {high!r}")
        flat = np.clip(times.reshape(-1), low, high)
        xs = self._states(flat)
        if isinstance(t, mx.array):
            xs = with_times(self.field, xs, flat.tolist(), t.reshape(-1), sign=1)
        return self.field.tree(xs.reshape(*times.shape, *xs.shape[1:]))

    def _states(self, times: np.ndarray) -> mx.array:
        """States at `times`: (times, *x.shape)."""
        if not (self.steps and len(times)):
            return mx.broadcast_to(self.field.x0, (len(times), *self.field.x0.shape))
        sign = 1 if self.end > self.start else -1
        owner = np.searchsorted([sign * s.end.t for s in self.steps], sign * times)
        order = np.argsort(owner, kind="stable")
        pieces = [
            interpolate(self.field, self.steps[n], times[owner == n].tolist())
            for n in np.unique(owner)
        ]
        return mx.concatenate(pieces)[mx.array(np.argsort(order))]


def finite_steps(field: Field, steps: list[Step]) -> list[Step]:
    """The first steps, up to one at whose end or inside of which something is not finite."""

    def is_finite(step: Step) -> bool:
        middle = (step.start.t + step.end.t) / 2
        return all_finite(step.end.x) and all_finite(interpolate(field, step, [middle]))

    return list(itertools.takewhile(is_finite, steps))


class _Solution(NamedTuple):
    ts: mx.array
    xs: Any
    stats: Stats
    status: Any


class Solution(_Solution):
    """States `xs` at the times `ts` (time first: xs[k] is the state at ts[k]).

    After odeint(..., dense=True) `solution(t)` gives the state at any t between the first and the
    last time reached, an event's included: t of any shape gives states (*t.shape, *x.shape). Raises
    ValueError for times outside. Unpacks as `ts, xs, stats, status`; `dense` holds the steps that
    were kept, or None.
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
