"""Streams of training batches: functions `(n, step, *, key) -> (n, ...)` of the step's number.

A stream has no state, so any step's batch can be drawn again, alone and in any order.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np

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

# Of the points themselves, or of a tuple of them and what goes with them.
Stream = Callable[..., Any]
Points = mx.array | np.ndarray


def generated(generator: Callable[..., mx.array]) -> Stream:
    """Stream fresh draws of a generator `(n, *, key) -> (n, ...)` made of MLX operations."""

    @lru_cache(maxsize=4)
    def compiled(n: int) -> Callable[[mx.array], mx.array]:
        return mx.compile(lambda key: generator(n, key=key))

    def batch(n: int, step: int, *, key: mx.array) -> mx.array:
        return compiled(n)(fold_in(key, step))

    return batch


def shuffled(rows: np.ndarray, *others: np.ndarray) -> Stream:
    """Stream the `rows` (count, ...) in epochs: each row once per epoch, in an order of its own.

    Batches run on across epochs, so `n` need not divide the count and may exceed it. With `others`,
    arrays of as many rows such as labels, a batch is a tuple (rows, *others). Raises ValueError for
    another number of rows.
    """
    arrays = _together(rows, **_named(others))
    count = len(arrays[0])

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
        batch = tuple(mx.array(array[place]) for array in arrays)
        return batch if others else batch[0]

    return batch


def resampled(rows: np.ndarray) -> Callable[..., mx.array]:
    """Make a generator `(n, *, key) -> (n, ...)` that draws from `rows` with replacement."""
    device_rows = as_real(rows, "rows")
    check_rows(device_rows, "rows")

    @draws
    def draw(n: int, *, key: mx.array) -> mx.array:
        return device_rows[mx.random.randint(0, len(device_rows), (n,), key=key)]

    return draw


def _named(others: tuple[Points, ...]) -> dict[str, Points]:
    return {f"others[{k}]": other for k, other in enumerate(others)}


def _together(rows: Points, **others: Points) -> list[np.ndarray]:
    """Rows, and what goes with them, on the host; at least one, and as many of each."""
    arrays = [as_rows(rows, "rows"), *(as_rows(other, name) for name, other in others.items())]
    for name, other in zip(others, arrays[1:], strict=True):
        if len(other) != len(arrays[0]):
            raise ValueError(f"rows has {len(arrays[0])} and {name} {len(other)}; expected as many")
    return arrays


def _check_labels(labels: np.ndarray) -> None:
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "biu"):
        raise ValueError(
            f"labels are {describe(labels)}; expected integers (count,), such as "
            "np.unique(names, return_inverse=True)[1]"
        )


class Labelled:
    """Rows with labels: a stream of both, as `shuffled(rows, labels)`, and draws by label.

    `rows`: (count, ...); `labels`: (count,) integers.
    """

    def __init__(self, rows: np.ndarray, labels: np.ndarray):
        rows, labels = _together(rows, labels=labels)
        _check_labels(labels)
        self._stream = shuffled(rows, labels)
        self._rows = rows
        self._order = np.argsort(labels, kind="stable")  # rows, those of a label together
        self._sorted = labels[self._order]

    def __call__(self, n: int, step: int, *, key: mx.array) -> tuple[mx.array, mx.array]:
        """The rows and labels of a step."""
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


def whole(rows: np.ndarray, *others: np.ndarray) -> Stream:
    """Stream all `rows` at every step, as they are, for a coupling that chooses among them.

    With `others`, a tuple (rows, *others).
    """
    arrays = tuple(_together(rows, **_named(others)))

    def batch(n: int, step: int, *, key: mx.array) -> Any:
        return arrays if others else arrays[0]

    return batch
