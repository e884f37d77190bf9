"""What is wrong with a training that cannot go on: its network, its batch, or its loss."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

from flowmlx import ranks
from flowmlx.nets.embeddings import ConditionEmbedding
from flowmlx.solvers.arrays import as_numpy

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

    `loss(network, *batch, key=key)`; `draw(step)` gives the batch of a step again.
    """

    network: nn.Module
    optimizer: optim.Optimizer
    loss: Callable
    draw: Callable[[int], Sequence[Any]]
    first: int
    group: ranks.Group | None
    start: Sequence[Any] = ()
    now: tuple[int, Sequence[Any]] = (0, ())

    def see(self, step: int, batch: Sequence[Any]) -> None:
        """Keep the first batch and that of now: one drawn again may be another."""
        self.now = step, batch
        if step == self.first:
            self.start = batch
            self.check_labels()

    def check_labels(self) -> None:
        """Refuse labels, in the newest batch, past every table of a network.

        MLX would read whatever lies behind it. Labels that a `ConditionEmbedding` does not have
        make the loss NaN, which is noticed anyway.
        """
        if not _sizes(self.network, nn.Embedding):
            return
        with ranks.together(self.group):
            if outside := _labels_outside(self.network, self.loss, self.now[1], nn.Embedding):
                raise ValueError(f"{outside}; number labels from 0, or make the table larger")

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
            otherwise = FROM_THE_START if step == self.first else TRY
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


def cause(network: nn.Module, loss: Callable, batch: Sequence[Any]) -> str:
    """What there is in a batch that makes a loss NaN or infinite; "" where nothing is found.

    `loss(network, *batch, key=key)` has names for what is in the batch.
    """
    found = []
    for name, part in _named(loss, batch).items():
        if np.issubdtype(part.dtype, np.floating) and part.size:
            rows = part.reshape(len(part), -1) if part.ndim else part.reshape(1, 1)
            bad = ~np.isfinite(rows).all(axis=1)
            if bad.any():
                found.append(f"{name} holds NaN or infinity in {bad.sum()} of {len(rows)} rows")
            elif (largest := np.abs(rows).max()) > LARGEST:
                found.append(f"{name} holds numbers up to {largest:.3g}, too large to be squared")
    found.append(_labels_outside(network, loss, batch, ConditionEmbedding))
    return "; ".join(filter(None, found))


def _labels_outside(network: nn.Module, loss: Callable, batch: Sequence[Any], kind: type) -> str:
    """Say which labels have no row in any table of a kind; "" where all have one.

    Labels are integers (n,), if the batch has only one such array.
    """
    sizes = _sizes(network, kind)
    labels = [
        (name, part)
        for name, part in _named(loss, batch, only=mx.integer).items()
        if part.ndim == 1 and part.size
    ]
    if not sizes or len(labels) != 1:
        return ""
    (name, part), size = labels[0], max(sizes)
    outside = (part < 0) | (part >= size)
    if not outside.any():
        return ""
    return (
        f"{name} holds the label {part[outside][0]} ({outside.sum()} of {len(part)} rows are out "
        f"of range); the network knows labels 0 to {size - 1}"
    )


def _sizes(network: nn.Module, kind: type) -> list[int]:
    return [part["weight"].shape[0] for part in network.modules() if isinstance(part, kind)]


def _named(
    loss: Callable, batch: Sequence[Any], only: mx.DtypeCategory = mx.number
) -> dict[str, np.ndarray]:
    """The arrays of a batch on the host, by the names that the loss has for them."""
    found = {}
    for name, part in zip(_names(loss, len(batch)), batch, strict=True):
        for leaf, array in named_arrays(part).items():
            if isinstance(array, mx.array | np.ndarray):
                x = mx.array(array)
                if mx.issubdtype(x.dtype, only):
                    found[f"{name}.{leaf}" if leaf else name] = as_numpy(x)
    return found


def _names(loss: Callable, count: int) -> list[str]:
    try:
        parameters = list(inspect.signature(loss).parameters.values())[1 : 1 + count]
    except (TypeError, ValueError):  # of a function that does not tell
        parameters = []
    if len(parameters) == count and all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters):
        return [p.name for p in parameters]
    # *batch, as that of `conditions.conditional`
    return ["x0", "x1", *(f"batch[{k}]" for k in range(2, count - 1)), "cond"][:count]
