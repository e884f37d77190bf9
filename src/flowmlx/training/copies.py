"""Copies of networks, and of trees of arrays."""

import gc
from types import MethodType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from flowmlx.solvers.closures import held

COMPILED = type(mx.compile(abs))


def copy_of_module(module: nn.Module) -> nn.Module:
    """A network of the same class with layers and arrays of its own.

    Functions and other objects among its attributes are shared, and must not hold the network
    itself: calls of the copy would lead to the original. Raises TypeError where one does.
    """
    made, shared = {}, []
    copy = _copy(module, "", made, shared)
    originals = {id(thing) for thing, _ in made.values() if isinstance(thing, nn.Module)}
    for name, thing in shared:
        # A compiled function has the attributes of what it calls, and does not name it.
        start = gc.get_referents(thing) if type(thing) is COMPILED else thing
        found = held(start, whole=lambda part: isinstance(part, nn.Module))
        if any(id(part) in originals for _, part in found):
            raise TypeError(
                f"{type(module).__name__} has {name.lstrip('.')}, which holds the network itself, "
                "so that a copy would lead back to it; make another network and give it the "
                "averages: other.update(state.ema), other.eval()"
            )
    return copy


def _copy(thing: Any, name: str, made: dict[int, tuple[Any, Any]], shared: list) -> Any:
    """Copy what a network is made of; `made`: by id, what was copied and its copy."""
    if id(thing) in made:
        return made[id(thing)][1]

    def inner(part: Any, label: object) -> Any:
        return _copy(part, f"{name}.{label}", made, shared)

    if isinstance(thing, nn.Module):
        copy = type(thing).__new__(type(thing))
        made[id(thing)] = thing, copy  # before its parts, which may hold it
        dict.update(copy, {k: inner(part, k) for k, part in thing.items()})
        vars(copy).update({k: inner(part, k) for k, part in vars(thing).items()})
        return copy
    if type(thing) is MethodType and isinstance(thing.__self__, nn.Module):
        copy = MethodType(thing.__func__, inner(thing.__self__, "__self__"))
    elif isinstance(thing, mx.array):
        copy = mx.array(thing)
    elif isinstance(thing, dict):
        copy = {k: inner(part, k) for k, part in thing.items()}
    elif isinstance(thing, list | tuple):
        parts = [inner(part, k) for k, part in enumerate(thing)]
        copy = type(thing)(*parts) if hasattr(thing, "_fields") else type(thing)(parts)
    else:
        copy = set(thing) if isinstance(thing, set) else thing
        shared.append((name, thing))
    made[id(thing)] = thing, copy
    return copy


def copied(tree: Any) -> Any:
    """New containers with the same leaves."""
    if isinstance(tree, dict):
        return {name: copied(inner) for name, inner in tree.items()}
    return [copied(inner) for inner in tree] if isinstance(tree, list) else tree


def restore(tree: Any, old: Any) -> None:
    """Fill the containers of a tree with the leaves of a copy."""
    for k, leaf in old.items() if isinstance(tree, dict) else enumerate(old):
        if isinstance(tree[k], dict | list):
            restore(tree[k], leaf)
        else:
            tree[k] = leaf
