"""Fields v(t, x): the networks inside them, and in which mode these are.

`nn.Module.train` and `.eval` say whether layers such as `nn.Dropout` and `nn.BatchNorm` treat their
input as training does. What samples or scores with a field does so in eval mode, and gives each
part of a network back in the mode in which it came.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import mlx.core as mx
import mlx.nn as nn

from flowmlx.solvers.closures import held

# v(t, x), of a batch x (batch, ...) at a time t, a scalar or (batch,).
Field = Callable[[mx.array, mx.array], mx.array]

P = ParamSpec("P")
R = TypeVar("R")


def in_eval_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that is given fields: their networks are in eval mode while it runs."""

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        with _mode(networks((args, options)), training=False):
            return function(*args, **options)

    return call


def train_mode(network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Put a network that is in eval mode into training mode, and back.

    In one that is in training mode, the parts that its owner has put into eval mode stay so.
    """
    return _mode([] if network.training else [network], training=True)


@contextlib.contextmanager
def _mode(networks: list[nn.Module], *, training: bool) -> Iterator[None]:
    # Parts come after what they are part of, so that their own mode has the last word.
    before = [(part, part.training) for network in networks for part in network.modules()]
    changed = any(mode != training for _, mode in before)
    if changed:
        for network in networks:
            network.train(training)
    try:
        yield
    finally:
        if changed:
            for part, mode in before:
                part.train(mode)


def networks(field: Any) -> list[nn.Module]:
    """The networks that a field calls, as far as they can be seen.

    That is as far as `solvers.closures.held` sees. Not what a function compiled by `mx.compile`
    holds: its mode is that of its first call.
    """

    def is_network(thing: Any) -> bool:
        return isinstance(thing, nn.Module)

    return [thing for _, thing in held(field, whole=is_network) if is_network(thing)]
