"""Training: one compiled step, and the loop around it.

Everything random in step k is drawn from keys derived from (key, k), so a run that stops after any
step and goes on from its saved state makes the same numbers as one that never stopped.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from flowmlx.keys import fold_in, fold_in_globally, global_kept
from flowmlx.solvers.arrays import (
    as_numpy,
    check_callable,
    check_count,
    check_key,
    describe,
)
from flowmlx.training import ranks
from flowmlx.training.batches import Batch, as_batch, call
from flowmlx.training.diagnosis import Watch, check_network
from flowmlx.training.heldout import held_out_loss, keep_best, out_of_patience, settle
from flowmlx.training.state import TrainState
from flowmlx.training.step import make_step


class Report(NamedTuple):
    """What a callback of `fit` sees.

    `step`: steps done; `loss`: mean since the last report; `learning_rate` now;
    `steps_per_second` since the last report; `state`: the live training state; `test_loss`: of the
    averaged weights on the test batches, None without any.
    """

    step: int
    loss: float
    learning_rate: float
    steps_per_second: float
    state: TrainState
    test_loss: float | None = None


def fit(
    state: TrainState,
    batches: Callable[[int], Batch],
    *,
    loss: Callable,
    steps: int,
    key: mx.array,
    ema_decay: float = 0.999,
    clip_norm: float | None = None,
    log_every: int = 100,
    callbacks: Iterable[Callable[[Report], None]] = (),
    stop: Callable[[int], bool] = lambda step: False,
    test_batches: Sequence[Batch] | None = None,
    patience: int | None = None,
    group: mx.distributed.Group | None = None,
) -> TrainState:
    """Train `state` up to step `steps`, a total that includes the steps it has already done.

    `batches(step)` returns a dict of arrays, whose names are arguments of the loss:
    `loss(model, **batch, key=key) -> scalar`. `paired_batches` makes such batches,
    `losses.flow_matching_loss` such a loss. A tuple of arrays is passed by position. Each callback
    gets a `Report` every `log_every` steps and at the end. `stop(step)` is called after every step;
    training ends if it returns True. Losses are read only for reports, so that the device never
    waits for the host.

    If batches, loss or model use MLX's global random generator, as `nn.Dropout` does, their random
    numbers depend on `key` and the step only; afterwards the generator is as it was before. A model
    in eval mode is trained in training mode, and is in eval mode again afterwards. In a model in
    training mode, parts that you have put into eval mode stay in it.

    `test_batches`: a list of batches of held-out data. Each report then has a `test_loss`: the mean
    over their rows, for the averaged weights (which are used for sampling) in eval mode, with the
    same times and noise in every report. `patience`: training ends after this number of reports
    without a lower test loss, and `state.ema` has the averaged weights of the lowest test loss.
    Only reports at multiples of `log_every` count; a resumed run must have the same `log_every`.

    `group`: processes that train together, such as `mx.distributed.init()`; None is this process
    alone. All ranks call `fit` in the same way; their `batches` return their parts of each batch
    (`ranks.share`). All start from the state of the first rank, and each draws its own times and
    noise. Gradients are averaged, and so are arrays that the model updates itself, such as running
    statistics; so all ranks keep the same arrays. Reports have the mean loss, and callbacks run on
    every rank. If `stop` returns True on one rank, training ends on all within ten steps.
    `test_batches` must be the same on all ranks, which share the work.

    Raises NonFiniteLoss if the loss becomes NaN or infinite. It names the cause if this is in the
    batch; `state` cannot be used afterwards. (An unknown label of an `nn.Embedding` gives NaN.)
    Raises ValueError for `steps`, `log_every` or `patience` below 1, for patience without test
    batches, for a model without trainable weights or with weights that are not finite, and for a
    loss that is not a single number. Raises TypeError for a batch that is neither dict nor tuple,
    and for a loss without arguments for the entries. Warns if all gradients are zero.
    """
    steps, log_every = check_count(steps, "steps"), check_count(log_every, "log_every")
    key = check_key(key)
    if not isinstance(state, TrainState):
        raise TypeError(f"state is {describe(state)}; expected a TrainState(model, optimizer)")
    check_callable(batches, "batches", "batches(step)")
    check_callable(loss, "loss", "loss(model, **batch, key=key)")
    settle(state, patience, test_batches)
    _start_alike(state, group)
    check_network(state.model)
    step = make_step(state, loss, ema_decay=ema_decay, clip_norm=clip_norm, group=group)
    test = held_out_loss(state, loss, test_batches, key=key, group=group)
    stop, draw = ranks.agreed(stop, group), _drawing(batches, key, group)
    watch = Watch(state.model, state.optimizer, loss, lambda k: draw(k)[1], state.step, group)
    with global_kept():
        pending, since = [], time.perf_counter()
        while state.step < steps and not out_of_patience(state, patience):
            step_key, batch = draw(state.step)
            watch.see(state.step, batch)
            value = call(step, step_key, batch)
            mx.async_eval(value, state.arrays)
            pending.append(value)
            state.step += 1
            stopped = stop(state.step)
            if stopped or state.step == steps or state.step % log_every == 0:
                report = _report(state, pending, since, watch, test)
                keep_best(state, report.test_loss, counted=state.step % log_every == 0)
                for callback in callbacks:
                    callback(report)
                pending, since = [], time.perf_counter()
            if stopped:
                break
    return state


def _drawing(
    batches: Callable[[int], Batch], key: mx.array, group: ranks.Group | None
) -> Callable[[int], tuple[mx.array, Batch]]:
    """The function from a step to this rank's key for it, and its batch."""
    key = fold_in(key, "step")
    if rank := ranks.number(group):
        key = fold_in(key, "rank", rank)

    def draw(number: int) -> tuple[mx.array, Batch]:
        return fold_in_globally(key, number), as_batch(batches(number), f"batches({number})")

    return draw


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
    best = state.early_stopping
    if best is not None:
        loss = math.nan if best.test_loss is None else best.test_loss
        own["average"], own["test_loss"] = best.average, mx.array(loss)
        own["counts"] = mx.array([best.step, best.waited])
    first = ranks.from_first(own, group)
    state.model.update(first["model"])
    state.optimizer.state.update(first["optimizer"])
    state.ema.update(first["ema"])
    state.step = int(first["step"].item())
    if best is not None:
        best.average.update(first["average"])
        loss, (best.step, best.waited) = first["test_loss"].item(), first["counts"].tolist()
        best.test_loss = None if math.isnan(loss) else loss
    mx.eval(state.arrays)


def _report(
    state: TrainState,
    pending: list[mx.array],
    since: float,
    watch: Watch,
    test: Callable[[], float | None],
) -> Report:
    losses = as_numpy(ranks.average(mx.stack(pending), watch.group), dtype=np.float64)
    watch.check_losses(losses, state.step - len(losses))
    rate = len(losses) / (time.perf_counter() - since)
    current = float(as_numpy(state.optimizer.learning_rate))
    return Report(state.step, float(losses.mean()), current, rate, state, test())
