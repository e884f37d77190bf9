"""Batches: arrays by the names that the loss has for its arguments."""

import inspect
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from flowmlx.solvers.arrays import as_numpy, as_real, describe

# By name, such as {"x0": x0, "x1": x1}. Batches of a user's own may be tuples, which a loss takes
# by position.
Batch = dict[str, Any] | tuple

EXPECTED = 'expected a dict such as {"x0": x0, "x1": x1}, or a tuple such as (x0, x1)'


def call(function: Callable, first: Any, batch: Batch, **options: Any) -> Any:
    """Give a function, such as a loss, its first argument and the parts of a batch."""
    if isinstance(batch, dict):
        return function(first, **batch, **options)
    return function(first, *batch, **options)


def as_batch(value: Any, name: str) -> Batch:
    """A batch, with arrays of NumPy made MLX's. Raises TypeError for what is no batch."""
    if isinstance(value, dict):
        return {name: _on_device(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_on_device(part) for part in value)
    raise TypeError(f"{name} is {describe(value)}; {EXPECTED}")


def _on_device(part: Any) -> Any:
    return as_real(part, "a batch") if isinstance(part, np.ndarray) else part


def count_rows(batch: Batch) -> int:
    """How many samples a batch has: the rows of the first part that has rows."""
    if not (sizes := _sizes(batch)):
        raise ValueError(f"the batch has no array with rows; {EXPECTED}")
    return sizes[0]


def take_rows(batch: Batch, rows: slice) -> Batch:
    """Some samples of a batch, of all parts that have rows. Raises ValueError for uneven parts."""
    if len(sizes := set(_sizes(batch))) > 1:
        raise ValueError(f"the parts of the batch have {sorted(sizes)} rows; expected as many each")
    return tree_map(lambda x: x[rows] if x.ndim else x, batch)


def _sizes(batch: Batch) -> list[int]:
    leaves: Any = tree_flatten(batch)
    return [len(x) for _, x in leaves if x.ndim]


def check_takes(loss: Callable, batch: Batch) -> None:
    """Refuse a loss that has no arguments for the parts of a batch. Raises TypeError."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # of a function that does not tell
        return
    try:
        call(signature.bind, None, batch, key=None)
    except TypeError as error:
        parts = ", ".join(batch) if isinstance(batch, dict) else f"{len(batch)} arrays, by position"
        takes = [str(p).partition(":")[0] for k, p in signature.parameters.items() if k != "key"]
        raise TypeError(
            f"the loss takes {', '.join(takes[1:]) or 'no batch'} and the batch has {parts}: "
            f"{error}; name the parts as the loss does its arguments, or wrap it: "
            "conditions.conditional(loss) takes cond, snapshots.snapshots_loss(loss) start, length"
        ) from error


def named_parts(
    loss: Callable, batch: Batch, only: mx.DtypeCategory = mx.number
) -> dict[str, np.ndarray]:
    """The arrays of a batch, on the host, by name; of a tuple by the names that the loss has."""
    named = batch if isinstance(batch, dict) else dict(zip(_names(loss, batch), batch, strict=True))
    leaves: Any = tree_flatten(named)
    arrays = {k: mx.array(x) for k, x in leaves if isinstance(x, mx.array | np.ndarray)}
    return {k: as_numpy(x) for k, x in arrays.items() if mx.issubdtype(x.dtype, only)}


def _names(loss: Callable, batch: tuple) -> list[str]:
    try:
        _, *parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):  # of a function that does not tell
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [*named, *(f"batch[{k}]" for k in range(len(named), len(batch)))][: len(batch)]
