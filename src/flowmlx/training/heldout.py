"""The loss on held-out data, and stopping where it no longer falls."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from flowmlx.fields import in_eval_mode
from flowmlx.keys import fold_in, fold_in_globally
from flowmlx.solvers.arrays import as_numpy, check_count, describe
from flowmlx.training import ranks
from flowmlx.training.batches import Batch, as_batch, call, count_rows
from flowmlx.training.copies import copied, restore
from flowmlx.training.diagnosis import TRY, NonFiniteLoss, cause, check_loss, checked_tables
from flowmlx.training.state import EarlyStopping, TrainState
from flowmlx.training.step import compiled


def held_out_loss(
    state: TrainState,
    loss: Callable,
    batches: Sequence[Batch] | None,
    *,
    key: mx.array,
    group: ranks.Group | None = None,
) -> Callable[[], float | None]:
    """Make the function that gives the mean loss of `state.average` over all rows of `batches`.

    None without batches. In eval mode, with the same key for a batch at every call. The ranks take
    the batches in turn and all get the mean of all. It raises NonFiniteLoss where that is not
    finite.
    """
    if batches is None:
        return lambda: None
    given, key = _checked(batches), fold_in(key, "test")
    evaluate = _evaluation(state, loss)
    rows = np.array([count_rows(batch) for batch in given], np.float64)
    own = range(ranks.number(group), len(given), ranks.count(group))

    def mean() -> float:
        losses = [mx.array(0.0)] * len(given)
        for k in own:
            losses[k] = call(evaluate, fold_in_globally(key, k), given[k]).astype(mx.float32)
        found = as_numpy(ranks.total(mx.stack(losses), group), dtype=np.float64)
        for k in np.flatnonzero(~np.isfinite(found)):
            why = cause(state.model, loss, given[k]) or TRY
            raise NonFiniteLoss(state.step, f"the loss of test batch {k} is {found[k]}", why)
        return float(np.float32(found @ rows / rows.sum()))  # as a number that ranks can exchange

    return mean


def _checked(batches: Any) -> list[Batch]:
    if not isinstance(batches, list | tuple) or not batches:
        raise TypeError(
            f"test_batches is {describe(batches)}; expected a list of batches, such as "
            "[test(k) for k in range(8)] of a function as `batches` is"
        )
    return [as_batch(batch, f"test_batches[{k}]") for k, batch in enumerate(batches)]


def _evaluation(state: TrainState, loss: Callable) -> Callable:
    """The loss of the averaged weights, compiled: (key, **batch) -> loss."""
    model, average = state.model, state.average

    def evaluate(key: mx.array, args: tuple, parts: dict) -> mx.array:
        before = copied(model.state)
        model.update(average)
        try:
            with checked_tables(model):
                return check_loss(in_eval_mode(loss)(model, *args, **parts, key=key))
        finally:
            restore(model.state, before)

    return compiled(evaluate, loss, reads=[model.state, average], writes=[])


def settle(state: TrainState, patience: int | None, test_batches: object) -> None:
    """Begin to keep the best weights of `state`, go on with it or, without patience, end it."""
    if patience is not None and test_batches is None:
        raise ValueError(
            f"patience is {patience} and there are no test_batches; give some, such as "
            "[test(k) for k in range(8)] of rows that are not trained on"
        )
    if patience is not None:
        check_count(patience, "patience")
    if patience is None and state.early_stopping is not None:
        state.ema.update(state.early_stopping.average)
        state.early_stopping = None
    elif patience is not None and state.early_stopping is None:
        state.early_stopping = EarlyStopping(average=copied(state.ema))


def keep_best(state: TrainState, test_loss: float | None, *, counted: bool) -> None:
    """Let `state.ema` be the averages of the least test loss that was `counted`, if any."""
    best = state.early_stopping
    if best is None or test_loss is None:
        return
    none_yet = best.test_loss is None
    if counted and (best.test_loss is None or test_loss < best.test_loss):
        best.test_loss, best.step, best.waited = test_loss, state.step, 0
    elif counted:
        best.waited += 1
    if none_yet or best.step == state.step:
        state.ema.update(copied(best.average))


def out_of_patience(state: TrainState, patience: int | None) -> bool:
    """Whether as many reports as `patience` were no better than the best."""
    best = state.early_stopping
    return patience is not None and best is not None and best.waited >= patience
