"""What a function holds: its closure, its defaults, what it is bound to, and what is in these."""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

# Entries of a tuple, list or dict that is searched.
MOST = 1_000
# Things that are searched in all: an object may lead on to all that a program holds.
FURTHEST = 10_000


def held(
    start: Any, whole: Callable[[Any], bool] = lambda thing: False
) -> Iterator[tuple[str, Any]]:
    """Yield all that can be reached from `start`, itself included, with the names of variables.

    Goes through what a function closes over, names among the globals of its file, has as defaults
    or is bound to; what any object has as attributes, and the function that calls it; and what is
    in a tuple, list or dict. The nearest things come first, and no more than FURTHEST of them. The
    name is that of the variable that led there, "" without one. `whole(thing)`: what is not to be
    searched any further. What `mx.compile` has made cannot be looked into.
    """
    seen, waiting = set(), deque([("", start)])
    while waiting and len(seen) < FURTHEST:
        name, thing = waiting.popleft()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        yield name, thing
        if not whole(thing):
            waiting += [(inner or name, part) for inner, part in _parts(thing)]


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """What a thing holds at once, by the names of variables."""
    if isinstance(thing, FunctionType):
        yield from _enclosed(thing)
        for name in _names(thing.__code__):
            part = thing.__globals__.get(name)
            # A function that the file imports would lead on through all that its own file names.
            its = getattr(part, "__globals__", None)
            if its is None or its is thing.__globals__:
                yield name, part
        yield from (("", part) for part in (thing.__defaults__ or ()))
        yield from (thing.__kwdefaults__ or {}).items()
    elif isinstance(thing, MethodType):
        yield from (("", part) for part in (thing.__self__, thing.__func__))
    elif isinstance(thing, functools.partial):
        yield from (("", part) for part in (thing.func, *thing.args))
        yield from thing.keywords.items()
    elif isinstance(thing, dict | list | tuple):
        # Not through data that is kept as numbers of Python.
        if len(thing) <= MOST:
            yield from (
                ("", part) for part in (thing.values() if isinstance(thing, dict) else thing)
            )
    elif not isinstance(thing, type | ModuleType):
        yield from (("", part) for part in _attributes(thing))


def _attributes(thing: Any) -> Iterator[Any]:
    """What an object itself has, and the function that calls it."""
    yield from getattr(thing, "__dict__", {}).values()
    for cls in type(thing).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            yield getattr(thing, name, None)
    if callable(thing):
        yield type(thing).__call__


def _names(code: CodeType) -> set[str]:
    """Globals that a function names, also in the functions inside of it."""
    inner = (_names(const) for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*inner)


def _enclosed(function: FunctionType) -> Iterator[tuple[str, Any]]:
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        with contextlib.suppress(ValueError):  # of a name that has no value yet
            yield name, cell.cell_contents
