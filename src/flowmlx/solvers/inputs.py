"""What the user hands over, checked and brought into the form the solvers work with."""

import copy
import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from flowmlx.solvers.arrays import (
    as_numpy,
    as_tree,
    check_callable,
    check_count,
    check_number,
    check_returned,
    describe,
    dtype_name,
)
from flowmlx.solvers.control import Controller, Tolerance
from flowmlx.solvers.stepper import Time


class Field:
    """The user's field, on one array and host times; counts its evaluations.

    A state that is a tree travels as one array: (batch, n) if its leaves share their first axis,
    else (n,), in the widest of their dtypes.
    """

    def __init__(self, field: Callable[..., Any], x0: Any, args: tuple, name: str = "field"):
        check_callable(field, name, f"such as {name}(t, x)")
        if not isinstance(args, tuple | list):
            raise TypeError(f"args is {describe(args)}; expected a tuple, such as args=(value,)")
        x0, self.call = as_tree(x0, "x0"), f"{name}(t, x)"
        self.field, self.args, self.template, self.nfe = field, args, x0, 0
        leaves, self.names = _flatten(x0), leaf_names(x0)
        self.is_array = isinstance(x0, mx.array)
        self.shapes = [x.shape for x in leaves]
        self.dtypes = [x.dtype for x in leaves]
        batched = all(shape[:1] == self.shapes[0][:1] != () for shape in self.shapes)
        self.lead = self.shapes[0][: 1 if batched else 0]
        self.sizes = [math.prod(shape[len(self.lead) :]) for shape in self.shapes]
        self.cuts = np.cumsum(self.sizes)[:-1].tolist()
        self.x0 = self.pack(leaves)
        self.time_dtype = mx.float64 if self.x0.dtype == mx.float64 else mx.float32

    def __call__(self, t: Time, x: mx.array) -> mx.array:
        """Slope at time t and state x."""
        v = self.field(self.time(t), self.tree(x), *self.args)
        leaves = [v] if isinstance(v, mx.array) else self._returned(v)
        if self.nfe == 0:
            self._check(leaves, leaf_names(v))
        self.nfe += 1
        return self.pack(leaves)

    def begin(self, k: mx.array) -> None:
        """Nothing: the device starts when the step is whole; see `Prompt`."""

    def time(self, t: Any) -> mx.array:
        """A host time as the field sees it."""
        return mx.array(t, dtype=self.time_dtype)

    def with_args(self, args: tuple) -> "Field":
        """The same field with other arguments."""
        other = copy.copy(self)
        other.args = args
        return other

    def pack(self, leaves: list[mx.array]) -> mx.array:
        """The leaves, each with the same axes before its own, as one array."""
        if self.is_array:
            return leaves[0]
        dtype = reduce(mx.result_type, self.dtypes)
        before = leaves[0].shape[: leaves[0].ndim - len(self.shapes[0])]
        flat = [
            x.reshape(*before, *self.lead, size).astype(dtype)
            for x, size in zip(leaves, self.sizes, strict=True)
        ]
        return mx.concatenate(flat, axis=-1)

    def join(self, tree: Any) -> mx.array:
        """The user's tree as one array."""
        return self.pack(_flatten(tree))

    def tree(self, x: mx.array) -> Any:
        """One array, with any axes before its own, as the user's tree."""
        if self.is_array:
            return x
        before = x.shape[: x.ndim - len(self.lead) - 1]
        parts = mx.split(x, self.cuts, axis=-1)
        shaped = (
            part.reshape((*before, *shape)).astype(dtype)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        )
        return tree_map(lambda _: next(shaped), self.template)

    def _returned(self, v: Any) -> list[mx.array]:
        """Leaves of the tree that the field returned."""
        leaves = _flatten(v)
        if not any(isinstance(leaf, mx.array) for leaf in leaves):
            check_returned(v, self.call)
        return [check_returned(leaf, self.call) for leaf in leaves]

    def _check(self, v: list[mx.array], names: list[str]) -> None:
        if names != self.names:
            raise ValueError(
                f"{self.call} returned a tree with the leaves {names}; expected those of x0, "
                f"{self.names}"
            )
        got = [(x.shape, x.dtype) for x in v]
        expected = list(zip(self.shapes, self.dtypes, strict=True))
        if got != expected:
            raise ValueError(
                f"{self.call} returned shapes and dtypes {got}; expected those of x0, {expected}"
            )


class Prompt:
    """A field of which the device starts on each slope at once.

    For steps that wait for the device at their end: it takes an eighth off the time of a small
    network. In other steps the host never waits, and is ahead without this.
    """

    def __init__(self, field: Field):
        self.field = field

    def __call__(self, t: Time, x: mx.array) -> mx.array:
        """Slope at time t and state x."""
        return self.field(t, x)

    def begin(self, k: mx.array) -> None:
        """Start on a slope."""
        mx.async_eval(k)


def check_times(ts: Any, dtype: mx.Dtype, name: str = "ts") -> list[float]:
    """Two or more times that go one way, also in `dtype`, which is what the field sees."""
    times, kind = as_numpy(ts, name, np.float64), dtype_name(dtype)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(
            f"{name} has shape {times.shape}; expected two or more times, such as [0.0, 1.0]"
        )
    bad = times[~np.isfinite(seen(times, dtype))]
    if len(bad):
        raise ValueError(f"{name} holds {bad[0]}; expected times that are finite in {kind}")
    ahead, back = seen(times, dtype)[1:], seen(times, dtype)[:-1]
    wrong = ahead <= back if times[-1] > times[0] else ahead >= back
    if wrong.any():
        k = int(np.argmax(wrong))
        raise ValueError(
            f"{name}[{k}] = {times[k]} is followed by {name}[{k + 1}] = {times[k + 1]}; expected "
            f"times that strictly increase or strictly decrease in {kind}, such as "
            f"sorted(set({name}))"
        )
    if not math.isfinite(float(times[-1]) - float(times[0])):
        raise ValueError(f"{name} spans {times[0]} to {times[-1]}; expected a finite interval")
    return times.tolist()


def check_grid(
    times: list[float], step_size: float | None, grid: Any, dtype: mx.Dtype, max_steps: int
) -> list[float] | None:
    """Ends of the steps that the user asked for: of equal ones, or those of `grid`; or None.

    Of more than `max_steps` equal steps those that will not be taken are left out.
    """
    if step_size is not None and grid is not None:
        raise ValueError("step_size and grid are both given; expected one of them")
    t0, t1 = times[0], times[-1]
    if isinstance(grid, str):
        raise ValueError(
            f"grid is {grid!r}; expected times, such as flowmlx.solvers.grids.sine(16)"
        )
    if grid is not None:
        ends = check_times(grid, dtype, "grid")
        if (seen(ends, dtype)[[0, -1]] != seen(times, dtype)[[0, -1]]).any():
            raise ValueError(
                f"grid runs from {ends[0]!r} to {ends[-1]!r}; expected from {t0!r} to {t1!r}, the "
                "first to the last of ts"
            )
        return [t0, *ends[1:-1], t1]
    if step_size is None:
        return None
    step_size = check_step_size(step_size)
    # 2.1 / 0.3 is 7.000000000000001: seven steps, not eight.
    n = max(1, math.ceil(abs(t1 - t0) / step_size * (1 - 1e-12)))
    return [t0 + k * (t1 - t0) / n for k in range(min(n, max_steps + 2))] + [t1]


def check_tolerance(rtol: Any, atol: Any, field: Field) -> tuple[list[float], list[float]]:
    """Return rtol and atol for each leaf of x0, from numbers or from trees with one for each."""
    relative, absolute = _per_leaf(rtol, "rtol", field), _per_leaf(atol, "atol", field)
    if any(r == a == 0 for r, a in zip(relative, absolute, strict=True)):
        raise ValueError("rtol and atol are both 0; expected one of them above 0, such as 1e-4")
    # No error is no error where atol is 0 and the state is 0.
    return relative, [max(a, 1e-37) for a in absolute]


def seen(times: Any, dtype: mx.Dtype) -> np.ndarray:
    """Host times as the field sees them."""
    with np.errstate(over="ignore"):
        return np.asarray(times, np.float64 if dtype == mx.float64 else np.float32)


def check_control(control: Any) -> None:
    """Refuse what is no Controller."""
    if not isinstance(control, Controller):
        raise TypeError(f"control is {describe(control)}; expected a solvers.Controller()")


def check_step_size(step_size: Any) -> float:
    """Refuse steps that go nowhere."""
    expected = "a number above 0, whichever way time goes"
    return check_number(step_size, "step_size", expected, lambda h: 0 < h < math.inf)


def check_max_steps(max_steps: Any) -> int:
    """Refuse a solve that may take no step."""
    return check_count(max_steps, "max_steps")


def _per_leaf(value: Any, name: str, field: Field) -> list[Any]:
    n = len(field.sizes)
    leaves = _flatten(value) if isinstance(value, dict | list | tuple) else [value] * n
    if len(leaves) != n:
        raise ValueError(f"{name} holds {len(leaves)} numbers; expected one, or one per leaf: {n}")
    expected = "a number >= 0, such as 1e-4"
    return [check_number(leaf, name, expected, lambda a: 0 <= a < math.inf) for leaf in leaves]


def spread(per_leaf: tuple[list[float], list[float]], field: Field) -> Tolerance:
    """The tolerances for the state as one array: numbers where they are the same for all leaves."""

    def along(numbers: list[float]) -> Any:
        if len(set(numbers)) == 1:
            return numbers[0]
        return mx.array(np.repeat(numbers, field.sizes), dtype=field.time_dtype)

    return along(per_leaf[0]), along(per_leaf[1])


def leaf_names(tree: Any) -> list[str]:
    """Places of the leaves of a tree; [""] for an array."""
    return [name for name, _ in tree_flatten(tree)]


def _flatten(tree: Any) -> list[Any]:
    return [leaf for _, leaf in tree_flatten(tree)]
