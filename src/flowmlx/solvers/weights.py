"""The arrays in the user's arguments that gradients are taken in."""

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map


class Weights:
    """The arrays in the user's arguments that gradients are taken in."""

    def __init__(self, args: tuple):
        self.args = args
        self.trees = tree_map(
            lambda leaf: leaf.trainable_parameters() if isinstance(leaf, nn.Module) else leaf,
            tuple(args),
            is_leaf=_is_module,
        )
        self.leaves = [leaf for leaf in leaves_of(self.trees) if is_weight(leaf)]

    def bind(self, leaves: Sequence[mx.array]) -> tuple:
        """The arguments with other arrays; modules are changed in place."""
        rest = iter(leaves)
        trees = tree_map(lambda old: next(rest) if is_weight(old) else old, self.trees)
        return tree_map(
            lambda leaf, new: leaf.update(new) if isinstance(leaf, nn.Module) else new,
            tuple(self.args),
            trees,
            is_leaf=_is_module,
        )

    def restore(self) -> None:
        """Give modules their arrays back."""
        self.bind(self.leaves)

    def with_leaves(self, leaves: Sequence[mx.array]) -> "Weights":
        """The same arguments, with other arrays."""
        other = copy.copy(self)
        other.leaves = list(leaves)
        return other

    def tree(self, gradients: Sequence[mx.array]) -> tuple:
        """Gradients in the form of the arguments."""
        rest = iter(gradients)
        return tree_map(lambda old: next(rest) if is_weight(old) else None, self.trees)


def _is_module(tree: Any) -> bool:
    return isinstance(tree, nn.Module)


def is_weight(leaf: Any) -> bool:
    """Whether gradients are taken in a leaf: in floating-point arrays."""
    return isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)


def leaves_of(tree: Any) -> list[Any]:
    """The leaves of a tree, in order."""
    return [leaf for _, leaf in tree_flatten(tree)]
