"""Training: one compiled step, and the loop around it.

Everything random in step k is drawn from keys derived from (key, k), so a run that stops after any
step and goes on from its saved state makes the same numbers as one that never stopped.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map_with_path, tree_unflatten

from flowmlx import ranks
from flowmlx.background import in_background
from flowmlx.couplings import Coupling, HostCoupling, independent
from flowmlx.diagnosis import NonFiniteLoss, Watch, check_loss, check_network, named_arrays
from flowmlx.fields import train_mode
from flowmlx.keys import fold_in, generator, unkeyed
from flowmlx.names import look_up

__all__ = [
    "SCHEDULES",
    "NonFiniteLoss",
    "Report",
    "TrainState",
    "fit",
    "learning_rate",
    "make_step",
    "paired_batches",
]

# Steps whose points a pointwise coupling pairs at once: a call of NumPy costs as much as the
# arithmetic of a small batch.
POINTWISE_BLOCK = 32


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


class Report(NamedTuple):
    """What a callback of `fit` sees.

    `step`: steps done; `loss`: mean since the last report; `learning_rate` now;
    `steps_per_second` since the last report; `state`: the live training state.
    """

    step: int
    loss: float
    learning_rate: float
    steps_per_second: float
    state: TrainState


def learning_rate(
    peak: float, *, steps: int, warmup_steps: int = 0, schedule: str = "constant"
) -> float | Callable[[mx.array], mx.array]:
    """Learning rate over `steps` steps: linear warm-up to `peak`, then a schedule in `SCHEDULES`.

    Raises ValueError for an unknown schedule or a warm-up longer than the run.
    """
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"warmup_steps is {warmup_steps}; expected 0 to {steps}, the run's steps")
    after = look_up(SCHEDULES, schedule, "schedule")(peak, max(steps - warmup_steps, 1))
    if warmup_steps == 0:
        return after
    warm = optim.linear_schedule(0.0, peak, warmup_steps)
    return optim.join_schedules(
        [warm, after if callable(after) else lambda _: mx.array(peak)], [warmup_steps]
    )


SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "constant": lambda peak, steps: peak,
    "cosine": lambda peak, steps: optim.cosine_decay(peak, steps),
}


def paired_batches(
    source: Callable,
    target: Callable,
    batch_size: int,
    *,
    key: mx.array,
    coupling: Coupling,
    block: int | None = None,
    ahead: int | None = None,
) -> Callable[[int], tuple[mx.array, ...]]:
    """Batches for `fit`: step -> (x0, x1), drawn from two data sets and paired by `coupling`.

    `source` and `target` are functions `(n, step, *, key) -> (n, ...)`; see `flowmlx.data`. Of a
    tuple that the target returns, such as points and their labels, the first are paired and the
    others follow them: step -> (x0, x1, *others); a conditional coupling takes the second as well.

    `block`: steps whose points are drawn and coupled at once and then dealt out at random; a batch
    of a coupling by transport is then one of a larger plan. None is 1, and 32 for a `pointwise`
    coupling, whose pairs are of the same kind for any block. `ahead`: blocks that a `HostCoupling`
    computes before their turn, in threads; None is the number of processors, at most 8, and 0 for
    a `pointwise` coupling, which takes less time than threads of Python cost each other. The pairs
    are the same for any `ahead`. Raises ValueError for `block` below 1; what the coupling raises
    comes at its step.
    """
    pointwise = isinstance(coupling, HostCoupling) and coupling.pointwise
    if block is None:
        block = POINTWISE_BLOCK if pointwise else 1
    if block < 1:
        raise ValueError(f"block is {block}; expected a number of steps, at least 1")
    if not isinstance(coupling, HostCoupling) or (pointwise and ahead is None):
        ahead = 0
    drawn: dict[int, tuple] = {}

    def draw(number: int) -> tuple:
        n = batch_size * block
        with unkeyed(fold_in(key, "unkeyed", number)):  # the same, however far ahead
            x0 = source(n, number, key=fold_in(key, "source"))
            x1 = target(n, number, key=fold_in(key, "target"))
        return (x0, *x1) if isinstance(x1, tuple) else (x0, x1)

    def draw_on_host(number: int) -> list[np.ndarray]:
        # The block after it is drawn by the device meanwhile: the host would wait for all steps
        # under way, and then the device for the host.
        arrays = drawn.pop(number, None) or draw(number)
        drawn.clear()
        with contextlib.suppress(Exception):  # of a block that may never be asked for
            drawn[number + 1] = draw(number + 1)
            mx.async_eval([x for x in drawn[number + 1] if isinstance(x, mx.array)])
        return [np.asarray(x) for x in arrays]

    def prepare(number: int) -> Callable[[], tuple]:
        pair_key = fold_in(key, "coupling", number)
        if isinstance(coupling, HostCoupling):
            return _pairing(coupling, *draw_on_host(number), key=pair_key, block=block)
        x0, *x1s = arrays = draw(number)
        if coupling is independent and len(x0) == len(x1s[0]):  # in order: nothing to gather
            return lambda: arrays
        i, j = coupling(x0, x1s[0], key=pair_key)
        return lambda: (x0[i], *(x[j] for x in x1s))

    paired = in_background(prepare, ahead=ahead)

    def batches(step: int) -> tuple[mx.array, ...]:
        number, place = divmod(step, block)
        arrays = paired(number)
        size = len(arrays[0]) // block
        if block > 1:
            arrays = [x[place * size : (place + 1) * size] for x in arrays]
        return tuple(x if isinstance(x, mx.array) else mx.array(x) for x in arrays)

    return batches


def _pairing(
    coupling: HostCoupling, x0: np.ndarray, *x1s: np.ndarray, key: mx.array, block: int
) -> Callable:
    """The work of pairing arrays of NumPy, for another thread."""
    if coupling.conditional and len(x1s) < 2:
        raise ValueError(
            "the coupling takes conditions, and the target gives points alone; stream both, such "
            "as by data.streams.shuffled(rows, labels)"
        )
    rng = generator(key)

    def work() -> tuple[np.ndarray, ...]:
        i, j = coupling.pair(x0, *x1s[: 1 + coupling.conditional], rng=rng)
        if coupling.pointwise:  # each x0 in its place
            return x0, *(x.take(j, axis=0) for x in x1s)
        if block > 1:  # neighbouring pairs may be alike
            order = rng.permutation(len(i))
            i, j = i[order], j[order]
        return x0[i], *(x[j] for x in x1s)

    return work


def make_step(
    state: TrainState,
    loss: Callable,
    *,
    ema_decay: float = 0.999,
    clip_norm: float | None = None,
    group: mx.distributed.Group | None = None,
) -> Callable:
    """Compile one training step: `step(key, *batch) -> loss`, updating `state`'s arrays in place.

    The moving average starts fast, with decay min(ema_decay, (1 + step) / (10 + step)), so that it
    does not remember the initial weights. `clip_norm` bounds the gradient's global norm. The
    gradient is the mean over the ranks of `group`; the loss is this rank's own. What the model
    draws without a key comes from `key` too.
    """
    model, optimizer, ema = state.model, state.optimizer, state.ema
    value_and_grad = nn.value_and_grad(model, _scalar(loss))

    def step(key, *batch):
        before = named_arrays(model.parameters())
        with train_mode(model):
            value, gradients = value_and_grad(model, *batch, key=key)
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

    def keyed(key: mx.array, *batch: mx.array) -> mx.array:
        nonlocal traced
        with unkeyed(key), contextlib.nullcontext() if traced else _intact(state.arrays):
            value = compiled(key, *batch)
        traced = True
        return value

    return keyed


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

    def checked(model, *batch, key):
        return check_loss(loss(model, *batch, key=key))

    return checked


def fit(
    state: TrainState,
    batches: Callable[[int], tuple],
    *,
    loss: Callable,
    steps: int,
    key: mx.array,
    ema_decay: float = 0.999,
    clip_norm: float | None = None,
    log_every: int = 100,
    callbacks: Iterable[Callable[[Report], None]] = (),
    stop: Callable[[int], bool] = lambda step: False,
    group: mx.distributed.Group | None = None,
) -> TrainState:
    """Train `state` until `steps` steps are done, counting those it has done already.

    `batches(step)` gives the arrays that `loss(model, *batch, key=key) -> scalar` takes, such as
    `paired_batches` and `losses.flow_matching_loss`. Each callback gets a `Report` every
    `log_every` steps and at the end. `stop(step)` runs after every step; True ends training there.
    Losses are read only for reports, so that the device never waits for the host.

    What batches, loss and model draw from MLX's global generator, as `nn.Dropout` does, comes from
    `key` and the step; outside of these the generator is the caller's, and left alone. A model in
    eval mode is trained in training mode, and given back in eval mode. In one that is in training
    mode the parts that were put into eval mode stay so.

    `group`: processes that train together, such as `mx.distributed.init()`; None is this one alone.
    All call `fit` alike, `batches` giving each its part (`ranks.share`). They start from the first
    rank's state, draw times and noise of their own, average their gradients and what the model
    notes itself, such as running statistics, and so keep the same arrays; reports show the mean
    loss, callbacks run on every rank, and a True of `stop` on any ends training on all within ten
    steps.

    Raises NonFiniteLoss, which names the cause where the batch holds it, and after which `state` is
    not usable; ValueError for `steps` or `log_every` below 1, a model without anything to train or
    with weights that are not finite, a loss that is not one number, and labels that an
    `nn.Embedding` does not have (looked for in the first batch and at reports). Warns where all
    gradients were zero.
    """
    for name, value in (("steps", steps), ("log_every", log_every)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected an integer >= 1")
    _start_alike(state, group)
    check_network(state.model)
    step = make_step(state, loss, ema_decay=ema_decay, clip_norm=clip_norm, group=group)
    stop = ranks.agreed(stop, group)
    key = fold_in(key, "step")
    if rank := ranks.number(group):
        key = fold_in(key, "rank", rank)

    def draw(number: int) -> tuple:
        with unkeyed(fold_in(key, number, "batch")):
            return batches(number)

    watch = Watch(state.model, state.optimizer, loss, draw, state.step, group)
    pending, since = [], time.perf_counter()
    while state.step < steps:
        batch = draw(state.step)
        watch.see(state.step, batch)
        if state.step == watch.first:
            watch.check_labels()
        value = step(fold_in(key, state.step), *batch)
        mx.async_eval(value, state.arrays)
        pending.append(value)
        state.step += 1
        stopped = stop(state.step)
        if stopped or state.step == steps or state.step % log_every == 0:
            watch.check_labels()
            report = _report(state, pending, since, watch)
            for callback in callbacks:
                callback(report)
            pending, since = [], time.perf_counter()
        if stopped:
            break
    return state


def _start_alike(state: TrainState, group: mx.distributed.Group | None) -> None:
    """Give all ranks the state of the first."""
    if ranks.count(group) == 1:
        return
    own = {
        "model": state.model.parameters(),
        "optimizer": state.optimizer.state,
        "ema": state.ema,
        "step": mx.array(state.step),
    }
    first = ranks.from_first(own, group)
    state.model.update(first["model"])
    state.optimizer.state.update(first["optimizer"])
    state.ema.update(first["ema"])
    state.step = int(first["step"].item())
    mx.eval(state.arrays)


def _report(state: TrainState, pending: list[mx.array], since: float, watch: Watch) -> Report:
    losses = np.array(ranks.average(mx.stack(pending), watch.group), np.float64)
    watch.check_losses(losses, state.step - len(losses))
    rate = len(losses) / (time.perf_counter() - since)
    current = float(np.array(state.optimizer.learning_rate))
    return Report(state.step, float(losses.mean()), current, rate, state)
