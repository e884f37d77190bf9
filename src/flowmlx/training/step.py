"""One step of a training: what it changes, and the compiled function that changes it."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map_with_path, tree_unflatten

from flowmlx.fields import train_mode
from flowmlx.solvers import backend
from flowmlx.training import ranks
from flowmlx.training.batches import check_takes
from flowmlx.training.diagnosis import check_loss, checked_tables, named_arrays


@dataclass
class TrainState:
    """All that training changes: weights, their moving average, optimizer state, steps done.

    `ema` has all arrays of the model, as `model.parameters()`: the averages of those that are
    trained, and of numbers that the model notes itself, such as the running statistics of
    `nn.BatchNorm`; all else, such as frozen weights, as it is in the model.
    """

    model: nn.Module
    optimizer: optim.Optimizer
    ema: dict = field(default_factory=dict)
    step: int = 0

    def __post_init__(self):
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model is {type(self.model).__name__}; expected an mlx.nn.Module")
        self.optimizer.init(self.model.trainable_parameters())
        if not self.ema:
            trained = named_arrays(self.model.trainable_parameters())
            # Arrays of its own: the compiled step would otherwise see each weight under two names.
            own = tree_map_with_path(
                lambda name, w: w + 0 if name in trained else w, self.model.parameters()
            )
            self.ema.update(cast(dict, own))
        mx.eval(self.arrays)

    @property
    def arrays(self) -> list:
        """The containers that the compiled step reads and writes."""
        return [self.model.state, self.optimizer.state, self.ema]


def make_step(
    state: TrainState,
    loss: Callable,
    *,
    ema_decay: float = 0.999,
    clip_norm: float | None = None,
    group: mx.distributed.Group | None = None,
) -> Callable:
    """Compile one training step: `step(key, **batch) -> loss`, updating `state`'s arrays in place.

    It takes the parts of a batch as `loss(model, **batch, key=key)` does, by name or by position.

    The moving average starts fast, with decay min(ema_decay, (1 + step) / (10 + step)), so that it
    does not remember the initial weights. `clip_norm` bounds the gradient's global norm. The
    gradient is the mean over the ranks of `group`; the loss is this rank's own. What model and loss
    draw without a key comes from MLX's global generator, which `fit` seeds for each step.
    """
    backend.ready()
    model, optimizer, ema = state.model, state.optimizer, state.ema
    optimizer.init(model.trainable_parameters())  # of parts that were unfrozen since
    value_and_grad = nn.value_and_grad(model, _scalar(loss))

    def step(key, args, parts):
        before = named_arrays(model.parameters())
        with train_mode(model), checked_tables(model):
            value, gradients = value_and_grad(model, *args, **parts, key=key)
        trained = named_arrays(gradients)
        noted = {
            name: w
            for name, w in named_arrays(model.parameters()).items()
            if name in before and name not in trained and w is not before[name]
        }
        gradients = ranks.average(gradients, group)
        if noted and ranks.count(group) > 1:
            model.update(tree_unflatten(list(ranks.alike(noted, group).items())), strict=False)
        if clip_norm is not None:
            gradients, _ = optim.clip_grad_norm(gradients, clip_norm)
        optimizer.update(model, gradients)
        done = optimizer.step.astype(mx.float32)
        decay = mx.minimum(ema_decay, (1 + done) / (10 + done))

        def averaged(name: str, a: mx.array, w: mx.array) -> mx.array:
            changes = name in trained or name in noted
            if changes and mx.issubdtype(w.dtype, mx.inexact):
                return a + (1 - decay) * (w - a)
            return w

        ema.update(tree_map_with_path(averaged, ema, model.parameters()))
        return value

    carried = [*state.arrays, mx.random.state]
    compiled, traced = mx.compile(step, inputs=carried, outputs=carried), False

    def run(key: mx.array, /, *args: Any, **parts: Any) -> mx.array:
        nonlocal traced
        if not traced:
            check_takes(loss, parts or args)
        with contextlib.nullcontext() if traced else _intact(state.arrays):
            # In one order: another one would be traced anew.
            value = compiled(key, args, dict(sorted(parts.items())))
        traced = True
        return value

    return run


@contextlib.contextmanager
def _intact(trees: list) -> Iterator[None]:
    """Put the arrays of `trees` back where a trace fails: MLX leaves its placeholders there."""
    before = [_copy(tree) for tree in trees]
    try:
        yield
    except BaseException:
        for tree, old in zip(trees, before, strict=True):
            _restore(tree, old)
        raise


def _copy(tree: Any) -> Any:
    """New containers with the same leaves."""
    if isinstance(tree, dict):
        return {name: _copy(inner) for name, inner in tree.items()}
    return [_copy(inner) for inner in tree] if isinstance(tree, list) else tree


def _restore(tree: Any, old: Any) -> None:
    """Fill the containers of a tree with the leaves of a copy."""
    for k, leaf in old.items() if isinstance(tree, dict) else enumerate(old):
        if isinstance(tree[k], dict | list):
            _restore(tree[k], leaf)
        else:
            tree[k] = leaf


def _scalar(loss: Callable) -> Callable:
    """The loss, held to return one number."""

    def checked(model, *args, **parts):
        return check_loss(loss(model, *args, **parts))

    return checked
