"""A multilayer perceptron as a velocity field on vectors."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from flowmlx.keys import fold_in
from flowmlx.names import look_up
from flowmlx.nets.activations import ACTIVATIONS
from flowmlx.nets.embeddings import ConditionEmbedding
from flowmlx.solvers.arrays import as_array, as_batch, check_count, check_key


def raw(t: mx.array, width: int) -> mx.array:
    """Time itself: (n,) -> (n, 1)."""
    return t[:, None]


def sinusoidal(t: mx.array, width: int) -> mx.array:
    """Cosines and sines of t at `width` // 2 frequencies, at least one: (n,) -> (n, about width).

    The frequencies run geometrically from 1 to 100 (compare Vaswani et al. 2017, section 3.5).
    """
    frequencies = mx.exp(mx.linspace(0.0, math.log(100.0), max(width // 2, 1)))
    angles = t[:, None] * frequencies
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


# name -> (function (t, width) -> features, number of features for a given width)
TIME_EMBEDDINGS: dict[str, tuple[Callable[[mx.array, int], mx.array], Callable[[int], int]]] = {
    "raw": (raw, lambda width: 1),
    "sinusoidal": (sinusoidal, lambda width: 2 * max(width // 2, 1)),
}


class MLP(nn.Module):
    """Velocity field v(t, x) for vectors: `depth` hidden layers of `width` units.

    `dim`: length of x and of the output (the output's may be set apart with `out_dim`);
    `activation`: a name in `ACTIVATIONS`; `time_embedding`: a name in `TIME_EMBEDDINGS`;
    `cond_dim`: the number of classes, or of numbers in a condition, for a conditional field
    v(t, x, cond) (see `ConditionEmbedding`).
    `key` fixes the initial weights, uniform in +-1/sqrt(fan in). Call with `t` scalar or (batch,)
    and `x` (batch, dim). Raises ValueError for an unknown name or a size below 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        key: mx.array,
        width: int = 64,
        depth: int = 2,
        activation: str = "silu",
        time_embedding: str = "raw",
        out_dim: int | None = None,
        cond_dim: int | None = None,
    ):
        super().__init__()
        # What names this network, to build it again.
        self._options = {"width": width, "depth": depth, "activation": activation}
        self._options["time_embedding"] = time_embedding
        dim = check_count(dim, "dim")
        out_dim = dim if out_dim is None else check_count(out_dim, "out_dim")
        width, depth = check_count(width, "width"), check_count(depth, "depth")
        self._activation = look_up(ACTIVATIONS, activation, "activation")
        self._embed, features = look_up(TIME_EMBEDDINGS, time_embedding, "time embedding")
        self._width = width
        sizes = [dim] + [width] * depth + [out_dim]
        keys = mx.random.split(check_key(key), depth + 2)
        # One first layer on (x, t, condition), kept as products of their own so that nothing needs
        # concatenation and a shared t or condition costs one row.
        self.time = _linear(features(width), width, dim + features(width), keys[-1], bias=False)
        self.layers = [
            _linear(n, m, n + (features(width) if k == 0 else 0), keys[k])
            for k, (n, m) in enumerate(itertools.pairwise(sizes))
        ]
        self.condition = None
        if cond_dim is not None:
            self.condition = ConditionEmbedding(cond_dim, width, key=fold_in(key, "condition"))

    @property
    def options(self) -> dict[str, Any]:
        """Width, depth, activation and time embedding, as it was made with."""
        return dict(self._options)

    def __call__(self, t: mx.array, x: mx.array, cond: Any = None) -> mx.array:
        """Velocity (batch, out_dim) at `t`, scalar or (batch,), and `x` (batch, dim).

        `cond`: one condition or a batch, as `ConditionEmbedding` takes them; None: no condition.
        Raises ValueError where it does not fit the network or x.
        """
        first, *rest = self.layers
        x = as_batch(x, "x")
        if x.shape[-1] != first.weight.shape[1]:
            raise ValueError(f"x has shape {x.shape}; expected (batch, {first.weight.shape[1]})")
        t = as_array(t, "t", x.dtype).astype(x.dtype)
        if t.size not in (1, x.shape[0]):
            raise ValueError(
                f"t has shape {t.shape} and x {x.shape}; expected one time, or one for each sample"
            )
        shift = first.bias + self.time(self._embed(t.reshape(-1), self._width))
        if self.condition is not None:
            shift = shift + _one_or_each(self.condition(cond), x)
        elif cond is not None:
            raise ValueError("this MLP takes no condition; make it with MLP(..., cond_dim=n)")
        h = affine(x, first.weight, shift)
        for layer in rest:
            h = affine(self._activation(h), layer.weight, layer.bias)
        return h


def affine(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """x weight^T + bias."""
    if mx.default_device().type == mx.cpu:
        # addmm copies the bias to each row first: 40 us for 1,024 x 64 numbers, adding it after 12.
        return x @ weight.T + bias
    return mx.addmm(bias, x, weight.T)


def _one_or_each(c: mx.array, x: mx.array) -> mx.array:
    if c.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"cond holds {c.shape[0]} conditions and x {x.shape[0]} samples; expected one for "
            "each, or one for all"
        )
    return c


def _linear(n: int, m: int, fan_in: int, key: mx.array, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(n, m, bias=bias)
    bound = 1 / math.sqrt(fan_in)
    weight_key, bias_key = mx.random.split(key)
    layer.weight = mx.random.uniform(-bound, bound, (m, n), key=weight_key)
    if bias:
        layer.bias = mx.random.uniform(-bound, bound, (m,), key=bias_key)
    return layer
