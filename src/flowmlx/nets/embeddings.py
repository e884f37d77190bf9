"""Embeddings: conditions as vectors that a network adds to what it computes from x and t."""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from flowmlx.conditions import Condition
from flowmlx.solvers.arrays import as_numpy, as_real, check_count, check_key


class ConditionEmbedding(nn.Module):
    """Class labels, or vectors of numbers, to vectors of `width`; and one vector for no condition.

    The weights are one matrix (size, width). A vector of `size` numbers is multiplied by it; a
    label from 0 to `size` - 1 takes its row, as its one-hot vector would. `key` fixes the initial
    weights, uniform in +-1/sqrt(size). Raises ValueError for a size below 1.
    """

    def __init__(self, size: int, width: int, *, key: mx.array):
        super().__init__()
        size, width = check_count(size, "cond_dim"), check_count(width, "width")
        bound = 1 / math.sqrt(size)
        weight_key, none_key = mx.random.split(check_key(key))
        self.weight = mx.random.uniform(-bound, bound, (size, width), key=weight_key)
        self.none = mx.random.uniform(-bound, bound, (width,), key=none_key)

    def __call__(self, cond: Any) -> mx.array:
        """Embed `cond` (batch, width); (1, width) where it is one value for all samples, or None.

        Integers () or (batch,) are labels, other numbers (size,) or (batch, size) vectors; a
        `Condition` may leave out some. A label outside 0 to `size` - 1 is refused where it is a
        number on the host; in an mx.array, which a compiled step cannot read, it gives NaN. Raises
        ValueError for any other shape.
        """
        if cond is None:
            return self.none[None]
        value, given = cond if isinstance(cond, Condition) else (cond, None)
        if not isinstance(value, mx.array):
            self._check_labels(as_numpy(value, "cond"))
        rows = self._rows(as_real(value, "cond"))
        return rows if given is None else mx.where(given[:, None], rows, self.none)

    def _check_labels(self, value: np.ndarray) -> None:
        size = self.weight.shape[0]
        wrong = value[(value < 0) | (value >= size)]
        if value.dtype.kind in "iu" and value.ndim <= 1 and wrong.size:
            raise ValueError(f"cond holds the label {wrong.flat[0]}; expected 0 to {size - 1}")

    def _rows(self, value: mx.array) -> mx.array:
        size = self.weight.shape[0]
        if mx.issubdtype(value.dtype, mx.integer) and value.ndim <= 1:
            label = value.reshape(-1)
            known = (label >= 0) & (label < size)
            return mx.where(known[:, None], self.weight[mx.where(known, label, 0)], math.nan)
        if mx.issubdtype(value.dtype, mx.floating) and value.shape[-1:] == (size,):
            return value.reshape(-1, size).astype(self.weight.dtype) @ self.weight
        raise ValueError(
            f"cond has shape {value.shape} and dtype {value.dtype}; expected labels 0 to "
            f"{size - 1} as integers () or (batch,), or vectors as floating-point numbers "
            f"({size},) or (batch, {size})"
        )
