"""What is wrong with a training that cannot go on: its network, its batch, or its loss."""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

from flowmlx.nets.embeddings import ConditionEmbedding
from flowmlx.solvers.arrays import as_numpy
from flowmlx.training import ranks
from flowmlx.training.batches import Batch, call, named_parts

# Squares of larger numbers overflow float32.
LARGEST = 1e19

TRY = "try a lower learning rate, gradient clipping (clip norm 1.0), or data without extreme values"
FROM_THE_START = (
    "no update came before, and weights and batch are finite, so it is the network or the loss: "
    "look for a division by 0, a logarithm, or the root of a number below 0"
)
AFTER_ONE_UPDATE = (
    "the loss before it was finite, so its gradient was not, as that of a root at 0, or the "
    "learning rate is far too high"
)


class NonFiniteLoss(RuntimeError):
    """The loss or the weights became NaN or infinite; `step` (1-based) is where it was seen."""

    def __init__(self, step: int, what: str, why: str):
        super().__init__(f"{what} at step {step}; {why}")
        self.step = step


@dataclass
class Watch:
    """Looks at a training from its step `first` on, for what makes it go wrong in silence.

    `loss(network, **batch, key=key)`; `draw(step)` gives the batch of a step again.
    """

    network: nn.Module
    optimizer: optim.Optimizer
    loss: Callable
    draw: Callable[[int], Batch]
    first: int
    group: ranks.Group | None
    start: Batch = ()
    now: tuple[int, Batch] = (0, ())

    def see(self, step: int, batch: Batch) -> None:
        """Keep the first batch and that of now: one drawn again may be another."""
        self.now = step, batch
        if step == self.first:
            self.start = batch

    def check_losses(self, losses: np.ndarray, start: int) -> None:
        """Refuse losses of the steps from `start` on, and weights, that are not finite."""
        bad = start + np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            step = int(bad[0])
            raise NonFiniteLoss(step + 1, f"the loss is {losses[step - start]}", self._why(step))
        # A loss is computed before its step's update, so the last update shows only in the weights.
        end = start + len(losses)
        if names := not_finite(named_arrays(self.network.trainable_parameters())):
            why = AFTER_ONE_UPDATE if end == self.first + 1 else TRY
            raise NonFiniteLoss(end, "the weights are not finite", f"{why} ({_few(names)})")
        if start == self.first and learned_nothing(self.optimizer):
            warnings.warn(
                f"all gradients of the first {len(losses)} steps are 0; does the loss use the "
                "model that it is given?",
                stacklevel=4,
            )
        self.start = ()  # no longer in question

    def _why(self, step: int) -> str:
        """Why the loss of a step is not finite, alike on all ranks."""
        kept = {self.now[0]: self.now[1], self.first: self.start}
        try:
            found = cause(self.network, self.loss, kept.get(step) or self.draw(step))
            early = {self.first: FROM_THE_START, self.first + 1: AFTER_ONE_UPDATE}
            otherwise = early.get(step, TRY)
        except Exception:  # of a batch that cannot be drawn again
            found, otherwise = "", TRY
        return ranks.first_word(found, self.group) or otherwise


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """The arrays of a tree by their names in it."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(tree)))


def check_network(network: nn.Module) -> None:
    """Refuse a network that has nothing to train, or starts from numbers that are not finite."""
    trained, arrays = (
        named_arrays(x) for x in (network.trainable_parameters(), network.parameters())
    )
    if not trained:
        raise ValueError(
            f"all {len(arrays)} arrays of {type(network).__name__} are frozen, so there is nothing "
            "to train; unfreeze a part with .unfreeze()"
            if arrays
            else f"{type(network).__name__} has no parameters; MLX finds arrays and layers in "
            "attributes of an nn.Module and in lists and dicts there, not in tuples nor under a "
            "name that begins with _"
        )
    if bad := not_finite(trained):  # of others, a mask may hold -infinity
        raise ValueError(
            f"the weights are not finite before training ({_few(bad)}); give them other initial "
            "values, or load a checkpoint from before"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def not_finite(arrays: dict[str, mx.array]) -> list[str]:
    """Names of the arrays that hold NaN or infinity."""
    finite = as_numpy(mx.stack([mx.isfinite(w).all() for w in arrays.values()]))
    return [name for name, good in zip(arrays, finite, strict=True) if not good]


def check_loss(value: Any) -> mx.array:
    """The value of a loss, where it is one number. Raises ValueError or TypeError."""
    remedy = "expected a scalar mx.array, such as mx.mean(mx.square(error))"
    if not isinstance(value, mx.array):
        raise TypeError(f"the loss returned {type(value).__name__}; {remedy}")
    if value.shape != ():
        raise ValueError(f"the loss returned shape {value.shape}; {remedy}")
    return value


def learned_nothing(optimizer: optim.Optimizer) -> bool:
    """Whether every gradient was zero, as the mean tells that Adam and its like keep of them."""
    means = [w for name, w in named_arrays(optimizer.state).items() if name.endswith(".m")]
    return bool(means) and not any(mx.any(mean).item() for mean in means)


def cause(network: nn.Module, loss: Callable, batch: Batch) -> str:
    """What there is in a batch that makes a loss NaN or infinite; "" where nothing is found.

    A loss that takes the batch by position has names for what is in it.
    """
    found = []
    for name, part in named_parts(loss, batch).items():
        if np.issubdtype(part.dtype, np.floating) and part.size:
            rows = part.reshape(len(part), -1) if part.ndim else part.reshape(1, 1)
            bad = ~np.isfinite(rows).all(axis=1)
            if bad.any():
                found.append(f"{name} holds NaN or infinity in {bad.sum()} of {len(rows)} rows")
            elif (largest := np.abs(rows).max()) > LARGEST:
                found.append(f"{name} holds numbers up to {largest:.3g}, too large to be squared")
    found += [_labels_outside(network, loss, batch), *_indices_outside(network, loss, batch)]
    return "; ".join(filter(None, found))


def _labels_outside(network: nn.Module, loss: Callable, batch: Batch) -> str:
    """Say which labels have no row in any `ConditionEmbedding`; "" where all have one.

    Labels are integers (n,), if the batch has only one such array.
    """
    sizes = [x.weight.shape[0] for x in network.modules() if isinstance(x, ConditionEmbedding)]
    labels = [
        (name, part)
        for name, part in named_parts(loss, batch, only=mx.integer).items()
        if part.ndim == 1 and part.size
    ]
    return _outside(*labels[0], max(sizes)) if sizes and len(labels) == 1 else ""


def _indices_outside(network: nn.Module, loss: Callable, batch: Batch) -> list[str]:
    """Say which indices an `nn.Embedding` has no row for, of those that the loss gives it."""
    looked_up: list[tuple[mx.array, int]] = []
    with checked_tables(network, lambda indices, size: looked_up.append((indices, size))):
        call(loss, network, batch, key=mx.random.key(0))
    integers = named_parts(loss, batch, only=mx.integer)
    found = []
    for indices, size in looked_up:
        given = as_numpy(indices)
        same = (k for k, x in integers.items() if np.array_equal(x.ravel(), given.ravel()))
        found.append(_outside(next(same, "what an nn.Embedding is given"), given, size))
    return found


def _outside(name: str, labels: np.ndarray, size: int) -> str:
    outside = (labels < 0) | (labels >= size)
    if not outside.any():
        return ""
    return (
        f"{name} holds the label {labels[outside][0]} ({outside.sum()} of {labels.size} rows are "
        f"out of range); the network knows labels 0 to {size - 1}"
    )


@contextlib.contextmanager
def checked_tables(
    network: nn.Module, see: Callable[[mx.array, int], object] | None = None
) -> Iterator[None]:
    """Let every `nn.Embedding` of a network give NaN for an index that it has no row for.

    MLX would read whatever lies behind the table. `see(indices, size)` is told of each look-up.
    """
    tables = [
        (part, type(part))
        for part in network.modules()
        if isinstance(part, nn.Embedding) and type(part).__call__ is nn.Embedding.__call__
    ]
    try:
        for table, kind in tables:
            table.__class__ = _checked(kind, see)
        yield
    finally:
        for table, kind in tables:
            table.__class__ = kind


@functools.lru_cache(16)
def _checked(kind: type[nn.Embedding], see: Callable[[mx.array, int], object] | None) -> type:
    """The class of tables as `kind` for `checked_tables`."""

    def look_up(self, x):
        indices, size = mx.array(x), self.weight.shape[0]
        if see is not None:
            see(indices, size)
        known = (indices >= 0) & (indices < size)
        rows = kind.__call__(self, mx.where(known, indices, 0))
        return mx.where(known[..., None], rows, math.nan)

    return type(kind.__name__, (kind,), {"__call__": look_up})
