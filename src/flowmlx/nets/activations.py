"""Activation functions by name."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": nn.silu,
    "selu": nn.selu,
    "gelu": nn.gelu_approx,
    "tanh": mx.tanh,
    "relu": nn.relu,
    "softplus": nn.softplus,
    "elu": nn.elu,
}
