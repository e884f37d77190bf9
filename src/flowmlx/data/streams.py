"""Streams of training batches: functions `(n, step, *, key) -> (n, ...)` of the step's number.

A stream has no state, so any step's batch can be drawn again, alone and in any order.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from flowmlx.keys import fold_in, generator
from flowmlx.solvers.arrays import (
    as_numpy,
    as_real,
    as_rows,
    check_count,
    check_key,
    check_rows,
    describe,
    draws,
)

# Of the points themselves, or of a tuple or dict of them and what goes with them.
Stream = Callable[..., Any]
Points = mx.array | np.ndarray

# Points that are drawn at least to see whether a generator heeds its key: of two classes, drawn
# from four keys, so many are the same once in 2^48 times.
LEAST_DRAWN = 16


def generated(generator: Callable[..., Any]) -> Stream:
    """Stream fresh draws of a generator `(n, *, key) -> (n, ...)`.

    One made of MLX operations is compiled; one that draws on the host, from
    `np.random.default_rng(np.array(key))`, is called at every step. The first batch raises
    ValueError for a generator that does not draw from its key alone: its batches would be the same
    for ever, or others when a run is made again.
    """
    checked = False

    @lru_cache(maxsize=4)
    def drawn(n: int) -> Callable[[mx.array], Any]:
        def plain(key: mx.array) -> Any:
            return tree_map(_on_device, generator(n, key=key))

        compiled = mx.compile(plain)
        try:
            compiled(mx.random.key(0))  # a trace: nothing is computed
        except (ValueError, RuntimeError, TypeError):  # it reads the key, or its own error comes
            return plain
        return compiled

    def batch(n: int, step: int, *, key: mx.array) -> Any:
        nonlocal checked
        if n and not checked:
            _check_draws_from_key(generator, n * math.ceil(LEAST_DRAWN / n), key)
            checked = True
        return drawn(n)(fold_in(key, step))

    return batch


def _check_draws_from_key(generator: Callable[..., Any], n: int, key: mx.array) -> None:
    keys = [fold_in(key, "check", k) for k in (0, 0, 1, 2, 3)]
    first, again, *others = (_numbers(generator(n, key=k)) for k in keys)
    remedy = (
        "; hand the key on, as in mx.random.normal((n, 2), key=key), or for NumPy in "
        "rng = np.random.default_rng(np.array(key))"
    )
    if not _same(first, again):
        raise ValueError(
            "the generator gives other points for the same key, so it draws from a global state "
            f"and a run could not be made again{remedy}"
        )
    varied = any((rows != rows[:1]).any() for rows in first)  # else it is a single point
    if varied and all(_same(first, other) for other in others):
        raise ValueError(
            "the generator gives the same points for every key, so all batches would be the same"
            f"{remedy}; points that are to be the same at every step go in streams.whole(rows)"
        )


def _same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


def _numbers(tree: Any) -> list[np.ndarray]:
    """The arrays that a generator gives, on the host."""
    arrays = [_on_device(x) for _, x in cast(list[tuple[str, Any]], tree_flatten(tree))]
    # NumPy has no bfloat16.
    host = (np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x) for x in arrays)
    return [np.atleast_1d(x) for x in host]


def _on_device(x: Any) -> mx.array:
    return x if isinstance(x, mx.array) else mx.array(x)


def shuffled(*arrays: Points, **named: Points) -> Stream:
    """Stream the rows of arrays (count, ...) in epochs: each row once, in an order of its own.

    `shuffled(rows)` gives batches of rows, `shuffled(rows, labels)` tuples, and
    `shuffled(x1=rows, cond=labels)` dicts with the names that losses have for them. Batches run on
    across epochs, so `n` need not divide the count and may exceed it. Raises ValueError for arrays
    of different lengths.
    """
    rows, form = _together(arrays, named)
    count = len(rows[0])

    @lru_cache(maxsize=4)
    def order(key: bytes, epoch: int) -> np.ndarray:
        seed = [epoch, *np.frombuffer(key, np.uint32).tolist()]
        return np.random.default_rng(seed).permutation(count)

    def batch(n: int, step: int, *, key: mx.array) -> Any:
        n, step = check_count(n, "n", least=0), check_count(step, "step", least=0)
        epochs, places = np.divmod(np.arange(step * n, (step + 1) * n), count)
        key_bytes = as_numpy(check_key(key)).tobytes()
        chosen = [order(key_bytes, int(e))[places[epochs == e]] for e in np.unique(epochs)]
        place = np.concatenate([np.zeros(0, int), *chosen])
        return form([mx.array(array[place]) for array in rows])

    return batch


def resampled(rows: np.ndarray) -> Callable[..., mx.array]:
    """Make a generator `(n, *, key) -> (n, ...)` that draws from `rows` with replacement."""
    device_rows = as_real(rows, "rows")
    check_rows(device_rows, "rows")

    @draws
    def draw(n: int, *, key: mx.array) -> mx.array:
        return device_rows[mx.random.randint(0, len(device_rows), (n,), key=key)]

    return draw


def _together(
    arrays: tuple[Points, ...], named: dict[str, Points]
) -> tuple[list[np.ndarray], Callable[[list], Any]]:
    """Arrays on the host, with at least one row and as many each, and the form of their batches."""
    if bool(arrays) == bool(named):
        raise TypeError(
            f"{len(arrays)} arrays by position and {len(named)} by name; expected rows, or arrays "
            "that all have a name, such as x1=rows, cond=labels"
        )
    names = [*named] or ["rows", *(f"others[{k}]" for k in range(len(arrays) - 1))]
    values = [*arrays, *named.values()]
    rows = [as_rows(value, name) for name, value in zip(names, values, strict=True)]
    for name, other in zip(names, rows, strict=True):
        if len(other) != len(rows[0]):
            raise ValueError(
                f"{names[0]} has {len(rows[0])} rows and {name} {len(other)}; expected as many"
            )
    if named:
        return rows, lambda parts: dict(zip(names, parts, strict=True))
    return rows, tuple if len(rows) > 1 else lambda parts: parts[0]


def _check_labels(labels: np.ndarray) -> None:
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "biu"):
        raise ValueError(
            f"labels are {describe(labels)}; expected integers (count,), such as "
            "np.unique(names, return_inverse=True)[1]"
        )


class Labelled:
    """Rows with labels: a stream `shuffled(x1=rows, cond=labels)`, and draws by label.

    `rows`: (count, ...); `labels`: (count,) integers.
    """

    def __init__(self, rows: np.ndarray, labels: np.ndarray):
        (rows, labels), _ = _together((), {"rows": rows, "labels": labels})
        _check_labels(labels)
        self._stream = shuffled(x1=rows, cond=labels)
        self._rows = rows
        self._order = np.argsort(labels, kind="stable")  # rows, those of a label together
        self._sorted = labels[self._order]

    def __call__(self, n: int, step: int, *, key: mx.array) -> dict[str, mx.array]:
        """The rows of a step as "x1", and their labels as "cond"."""
        return self._stream(n, step, key=key)

    def alike(self, labels: Points, *, key: mx.array) -> mx.array:
        """Draw a row for each of `labels` (n,) among those that have it, with replacement.

        Raises ValueError for a label that no row has.
        """
        wanted = as_numpy(labels, "labels")
        _check_labels(wanted)
        first = np.searchsorted(self._sorted, wanted, side="left")
        last = np.searchsorted(self._sorted, wanted, side="right")
        if (missing := first == last).any():
            raise ValueError(f"no row has the label {wanted[missing][0]}")
        place = generator(key).integers(first, last)
        return mx.array(self._rows[self._order[place]])  # on the host, which waits for no step


def whole(*arrays: Points, **named: Points) -> Stream:
    """Stream all rows at every step, as they are, for a coupling that chooses among them.

    Rows, tuples or dicts, as by `shuffled`.
    """
    rows, form = _together(arrays, named)

    def batch(n: int, step: int, *, key: mx.array) -> Any:
        return form(rows)

    return batch
