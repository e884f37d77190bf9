"""Training: one compiled step, and the loop around it.

Everything random in step k is drawn from keys derived from (key, k), so a run that stops after any
step and goes on from its saved state makes the same numbers as one that never stopped.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from flowmlx.couplings import Coupling, HostCoupling, independent, on_host
from flowmlx.keys import fold_in, fold_in_globally, generator, global_kept, global_of
from flowmlx.names import look_up
from flowmlx.solvers.arrays import (
    as_numpy,
    as_points,
    as_real,
    check_callable,
    check_count,
    check_key,
    check_number,
    describe,
)
from flowmlx.training import ranks
from flowmlx.training.background import in_background
from flowmlx.training.diagnosis import NonFiniteLoss, Watch, check_network
from flowmlx.training.step import TrainState, make_step

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
    steps = check_count(steps, "steps", least=0)
    warmup_steps = check_count(warmup_steps, "warmup_steps", least=0)
    peak = check_number(peak, "peak", "a learning rate, such as 1e-3", lambda rate: rate >= 0)
    if not warmup_steps <= steps:
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
    block, batch_size = check_count(block, "block"), check_count(batch_size, "batch_size")
    key = check_key(key)
    check_callable(source, "source", "source(n, step, key=key)")
    check_callable(target, "target", "target(n, step, key=key)")
    check_callable(coupling, "coupling", "coupling(x0, x1, key=key)")
    if not isinstance(coupling, HostCoupling) or (pointwise and ahead is None):
        ahead = 0
    drawn: dict[int, tuple] = {}

    def draw(number: int) -> tuple:
        n = batch_size * block
        with global_of(key, "drawn", number):  # a block is not always drawn at the same step
            x0 = source(n, number, key=fold_in(key, "source"))
            x1 = target(n, number, key=fold_in(key, "target"))
        x1s = x1 if isinstance(x1, tuple) else (x1,)
        points = as_points(x0, "the source's batch"), as_points(x1s[0], "the target's batch")
        return (*points, *x1s[1:])

    def draw_on_host(number: int) -> list[np.ndarray]:
        # The block after it is drawn by the device meanwhile: the host would wait for all steps
        # under way, and then the device for the host.
        arrays = drawn.pop(number, None) or draw(number)
        drawn.clear()
        with contextlib.suppress(Exception):  # of a block that may never be asked for
            drawn[number + 1] = draw(number + 1)
            mx.async_eval([x for x in drawn[number + 1] if isinstance(x, mx.array)])
        return on_host(*arrays)

    def prepare(number: int) -> Callable[[], tuple]:
        pair_key = fold_in(key, "coupling", number)
        if isinstance(coupling, HostCoupling):
            return _pairing(coupling, *draw_on_host(number), key=pair_key, block=block)
        x0, *x1s = arrays = draw(number)
        if coupling is independent and len(x0) == len(x1s[0]):  # in order: nothing to gather
            return lambda: arrays
        with global_of(key, "paired", number):
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
    `key` and the step, and the generator is given back as it was. A model in eval mode is trained
    in training mode, and given back in eval mode. In one that is in training mode the parts that
    were put into eval mode stay so.

    `group`: processes that train together, such as `mx.distributed.init()`; None is this one alone.
    All call `fit` alike, `batches` giving each its part (`ranks.share`). They start from the first
    rank's state, draw times and noise of their own, average their gradients and what the model
    notes itself, such as running statistics, and so keep the same arrays; reports show the mean
    loss, callbacks run on every rank, and a True of `stop` on any ends training on all within ten
    steps.

    Raises NonFiniteLoss, which names the cause where the batch holds it, and after which `state` is
    not usable; an `nn.Embedding` gives NaN for a label that it does not have. Raises ValueError for
    `steps` or `log_every` below 1, a model without anything to train or with weights that are not
    finite, and a loss that is not one number; TypeError for a batch that is no tuple of arrays.
    Warns where all gradients were zero.
    """
    steps, log_every = check_count(steps, "steps"), check_count(log_every, "log_every")
    key = check_key(key)
    if not isinstance(state, TrainState):
        raise TypeError(f"state is {describe(state)}; expected a TrainState(model, optimizer)")
    check_callable(batches, "batches", "batches(step)")
    check_callable(loss, "loss", "loss(model, *batch, key=key)")
    _start_alike(state, group)
    check_network(state.model)
    step = make_step(state, loss, ema_decay=ema_decay, clip_norm=clip_norm, group=group)
    stop = ranks.agreed(stop, group)
    key = fold_in(key, "step")
    if rank := ranks.number(group):
        key = fold_in(key, "rank", rank)

    def draw(number: int) -> tuple[mx.array, tuple]:
        """The key of a step, and its batch."""
        return fold_in_globally(key, number), _arrays(batches(number))

    watch = Watch(state.model, state.optimizer, loss, lambda k: draw(k)[1], state.step, group)
    with global_kept():
        pending, since = [], time.perf_counter()
        while state.step < steps:
            step_key, batch = draw(state.step)
            watch.see(state.step, batch)
            value = step(step_key, *batch)
            mx.async_eval(value, state.arrays)
            pending.append(value)
            state.step += 1
            stopped = stop(state.step)
            if stopped or state.step == steps or state.step % log_every == 0:
                report = _report(state, pending, since, watch)
                for callback in callbacks:
                    callback(report)
                pending, since = [], time.perf_counter()
            if stopped:
                break
    return state


def _arrays(batch: Any) -> tuple:
    """A batch, with arrays of NumPy made MLX's. Raises TypeError for what is no batch."""
    if not isinstance(batch, tuple | list):
        raise TypeError(f"batches(step) gave {describe(batch)}; expected a tuple, such as (x0, x1)")
    return tuple(as_real(x, "a batch") if isinstance(x, np.ndarray) else x for x in batch)


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
    losses = as_numpy(ranks.average(mx.stack(pending), watch.group), dtype=np.float64)
    watch.check_losses(losses, state.step - len(losses))
    rate = len(losses) / (time.perf_counter() - since)
    current = float(as_numpy(state.optimizer.learning_rate))
    return Report(state.step, float(losses.mean()), current, rate, state)
