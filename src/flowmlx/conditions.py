"""Conditions: what a field is told beside the time and the point, and how training leaves it out.

A conditional field is a function `field(t, x, cond=None)`. `cond` is one value for all samples or a
batch of them: integer class labels, or vectors of numbers. None is no condition: then the field is
that of all the data, which classifier-free guidance (`flowmlx.guidance`) extrapolates from. One
network learns both where training leaves out the condition of a sample now and then.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from flowmlx.solvers.arrays import as_real, check_callable, check_key, check_number


class Condition(NamedTuple):
    """Conditions of which some are left out.

    `value`: (batch,) integer labels or (batch, n) finite numbers; `given`: (batch,) bool, False for
    a sample without condition, whose value does not matter.
    """

    value: mx.array
    given: mx.array


def drop(cond: mx.array | Condition, rate: float, *, key: mx.array) -> Condition:
    """Leave out each sample's condition with probability `rate`, on its own.

    `cond`: a batch, (batch, ...). What was left out before stays so.
    """
    value, given = cond if isinstance(cond, Condition) else (as_real(cond, "cond"), None)
    if value.ndim == 0:
        raise ValueError("cond has shape (); expected (batch, ...), a condition for each sample")
    rate = check_number(rate, "rate", "a probability", lambda rate: 0 <= rate <= 1)
    kept = mx.random.bernoulli(1 - rate, (value.shape[0],), key=check_key(key))
    return Condition(value, kept if given is None else given & kept)


def conditioned(field: Callable[..., Any], cond: Any) -> Callable[..., Any]:
    """The field v(t, x) of `field(t, x, cond)` under one condition, for any solver or loss.

    `cond` as the field takes it; None is the unconditional field itself.
    """
    check_callable(field, "field", "field(t, x, cond)")
    return field if cond is None else lambda t, x: field(t, x, cond)


def conditional(loss: Callable, *, dropout: float = 0.1) -> Callable:
    """Turn a loss `(field, x0, x1, *, key)` into `(field, x0, x1, cond, *, key)`.

    For `fit` with a conditional field and batches that have an entry "cond". Other entries are
    passed on to `loss` by name. The condition of each sample is hidden with probability `dropout`,
    so that the field also learns the velocity without a condition, which guidance needs (Ho &
    Salimans 2022, arXiv 2207.12598, section 3.2); with 0 it is never hidden. The loss must call the
    field with the samples in the order of the batch. Raises ValueError unless 0 <= dropout < 1.
    """
    check_callable(loss, "loss", "loss(field, x0, x1, key=key)")
    expected = "a probability below 1, such as 0.1"
    dropout = check_number(dropout, "dropout", expected, lambda rate: 0 <= rate < 1)

    def conditional_loss(field, x0, x1, cond, *, key: mx.array, **others: Any) -> mx.array:
        key, drop_key = mx.random.split(check_key(key))
        if dropout:
            cond = drop(cond, dropout, key=drop_key)
        return loss(conditioned(field, cond), x0, x1, key=key, **others)

    return conditional_loss
