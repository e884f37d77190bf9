"""Embeddings: conditions as vectors that a network adds to what it computes from x and t."""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from flowmlx.conditions import Condition


class ConditionEmbedding(nn.Module):
    """Class labels, or vectors of numbers, to vectors of `width`; and one vector for no condition.

    The weights are one matrix (size, width). A vector of `size` numbers is multiplied by it; a
    label from 0 to `size` - 1 takes its row, as its one-hot vector would. `key` fixes the initial
    weights, uniform in +-1/sqrt(size). Raises ValueError for a size below 1.
    """

    def __init__(self, size: int, width: int, *, key: mx.array):
        super().__init__()
        if size < 1:
            raise ValueError(
                f"cond_dim is {size}; expected the number of classes, or of numbers in a condition"
            )
        bound = 1 / math.sqrt(size)
        weight_key, none_key = mx.random.split(key)
        self.weight = mx.random.uniform(-bound, bound, (size, width), key=weight_key)
        self.none = mx.random.uniform(-bound, bound, (width,), key=none_key)

    def __call__(self, cond: Any) -> mx.array:
        """Embed `cond` (batch, width); (1, width) where it is one value for all samples, or None.

        Integers () or (batch,) are labels, other numbers (size,) or (batch, size) vectors; a
        `Condition` may leave out some. A label outside 0 to `size` - 1 gives NaN, as inside a
        compiled step it cannot be refused. Raises ValueError for any other shape.
        """
        if cond is None:
            return self.none[None]
        value, given = cond if isinstance(cond, Condition) else (cond, None)
        rows = self._rows(value if isinstance(value, mx.array) else mx.array(np.asarray(value)))
        return rows if given is None else mx.where(given[:, None], rows, self.none)

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
