"""One step of a training, compiled."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map_with_path, tree_unflatten

from flowmlx.fields import train_mode
from flowmlx.solvers import backend
from flowmlx.training import ranks
from flowmlx.training.batches import check_takes
from flowmlx.training.copies import copied, restore
from flowmlx.training.diagnosis import check_loss, checked_tables, named_arrays
from flowmlx.training.state import TrainState


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
    model, optimizer, average = state.model, state.optimizer, state.average
    optimizer.init(model.trainable_parameters())  # of parts that were unfrozen since
    value_and_grad = nn.value_and_grad(model, _scalar(loss))

    def step(key: mx.array, args: tuple, parts: dict) -> mx.array:
        before = named_arrays(model.parameters())
        with train_mode(model), checked_tables(model):
            value, gradients = value_and_grad(model, *args, **parts, key=key)
        trained = named_arrays(gradients)
        noted = _noted(model, before, trained)
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

        average.update(tree_map_with_path(averaged, average, model.parameters()))
        return value

    return compiled(step, loss, reads=state.arrays, writes=state.arrays)


def compiled(function: Callable, loss: Callable, *, reads: list, writes: list) -> Callable:
    """Compile `function(key, args, parts)`; it is called as `loss` is, (key, *args, **parts).

    `reads`, `writes`: containers of arrays that it uses and changes. Raises TypeError where `loss`
    has no arguments for the parts. The containers are as they were where the first call raises.
    """
    traced, random = False, mx.random.state
    run = mx.compile(function, inputs=[*reads, random], outputs=[*writes, random])

    def call(key: mx.array, /, *args: Any, **parts: Any) -> mx.array:
        nonlocal traced
        if not traced:
            check_takes(loss, parts or args)
        with contextlib.nullcontext() if traced else _intact(reads):
            # In one order: another one would be traced anew.
            value = run(key, args, dict(sorted(parts.items())))
        traced = True
        return value

    return call


def _noted(
    model: nn.Module, before: dict[str, mx.array], trained: dict[str, mx.array]
) -> dict[str, mx.array]:
    """The arrays that the model has changed itself, by name."""
    return {
        name: w
        for name, w in named_arrays(model.parameters()).items()
        if name in before and name not in trained and w is not before[name]
    }


@contextlib.contextmanager
def _intact(trees: list) -> Iterator[None]:
    """Put the arrays of `trees` back where a trace fails: MLX leaves its placeholders there."""
    before = [copied(tree) for tree in trees]
    try:
        yield
    except BaseException:
        for tree, old in zip(trees, before, strict=True):
            restore(tree, old)
        raise


def _scalar(loss: Callable) -> Callable:
    """The loss, held to return one number."""

    def checked(model, *args, **parts):
        return check_loss(loss(model, *args, **parts))

    return checked
