"""Fields v(t, x): the networks inside them, and in which mode these are.

`nn.Module.train` and `.eval` say whether layers such as `nn.Dropout` and `nn.BatchNorm` treat their
input as training does. What samples or scores with a field does so in eval mode, and gives each
part of a network back in the mode in which it came.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any, ParamSpec, TypeVar

import mlx.nn as nn

P = ParamSpec("P")
R = TypeVar("R")

# Entries of a tuple, list or dict that is searched for networks.
MOST = 1_000


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

    A network itself; what a function closes over, is bound to, or names among the globals of its
    file; what an object with `__call__` has as attributes; what is in a tuple, list or dict of
    such. Not what a function compiled by `mx.compile` holds: its mode is that of its first call.
    """
    found, seen, waiting = [], set(), [field]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            found.append(thing)
        else:
            waiting += _held(thing)
    return found


def _held(thing: Any) -> Iterable[Any]:
    """What a field may have its networks in."""
    if isinstance(thing, FunctionType):
        own = (thing.__globals__.get(name) for name in _names(thing.__code__))
        # A function that the file imports would lead on through all that its own file names.
        near = (x for x in own if getattr(x, "__globals__", None) in (None, thing.__globals__))
        return [*_enclosed(thing), *near, *(thing.__defaults__ or ())]
    if isinstance(thing, MethodType):
        return thing.__self__, thing.__func__
    if isinstance(thing, functools.partial):
        return thing.func, *thing.args, *thing.keywords.values()
    if isinstance(thing, dict | list | tuple):
        # Not through data that is kept as numbers of Python.
        return [] if len(thing) > MOST else thing.values() if isinstance(thing, dict) else thing
    if callable(thing) and not isinstance(thing, type):
        return getattr(thing, "__dict__", {}).values()
    return ()


def _names(code: CodeType) -> set[str]:
    """Globals that a function names, also in the functions inside of it."""
    inner = (_names(const) for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*inner)


def _enclosed(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # of a name that has no value yet
            yield cell.cell_contents
