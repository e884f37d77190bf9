"""Guidance: fields that push samples harder towards their condition than the data does.

All methods extrapolate from a weak field through a strong one,

    v = v_weak + w (v_strong - v_weak),

so that weight w = 1 is the strong field itself, without guidance, and w = 0 the weak one. Papers
that write (1 + w) v_strong - w v_weak, such as Ho & Salimans 2022, count from there: their w is our
w - 1. A weight above 1 sharpens, and gives up variety; the result is no longer a density that
anything was trained on.

A method takes a conditional field `field(t, x, cond=None)` (see `flowmlx.conditions`), a condition
and a weight, and returns a field v(t, x) for any solver, for x of any shape (batch, ...) and t a
scalar or (batch,). A model of `flowmlx.bridges`, which returns a velocity and a score, is guided in
both, each by itself, and returns both. A weight is a number, or one for each sample, (batch,), or a
function of t that returns such, as `interval` does.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from flowmlx.conditions import conditioned
from flowmlx.fields import Field
from flowmlx.paths import expand_time
from flowmlx.solvers.arrays import (
    as_array,
    as_batch,
    check_callable,
    check_number,
    check_returned,
    samplewise,
)

Weight = float | mx.array | Callable[[mx.array], Any]


def cfg(field: Callable[..., mx.array], cond: Any, weight: Weight) -> Field:
    """Make the field of classifier-free guidance: v = v_uncond + weight (v_cond - v_uncond).

    v_cond is `field` with `cond`, and v_uncond is `field` without a condition (Ho & Salimans 2022,
    arXiv 2207.12598, applied to the velocity). `weight`: 0 is unconditional, 1 conditional; above
    1, samples are more typical of the condition and less varied. It may be a function of t. An
    evaluation costs two evaluations of `field`, or one if the weight is the number 1.
    """
    return _extrapolated(conditioned(field, cond), field, weight)


def cfg_zero_star(
    field: Callable[..., mx.array], cond: Any, weight: Weight, *, zero_before: float = 0.04
) -> Field:
    """CFG-Zero* (Fan et al. 2025, arXiv 2503.18886): classifier-free guidance, corrected twice.

    The unconditional velocity v_u is scaled, sample by sample, to s v_u, the point nearest to the
    conditional v_c: s = <v_c, v_u> / |v_u|^2. And the velocity is zero for t < `zero_before`, where
    a network that is not fully trained is worse than none. The paper zeroes the first of the
    solver's steps, some 4% of them; a time says the same to solvers that choose their own. A step
    does nothing where all its evaluations are before that time: with n Euler steps, 1 / n zeroes
    the first. 0 zeroes nothing.
    """
    return zero_init(_extrapolated(conditioned(field, cond), field, weight, _nearest), zero_before)


def autoguidance(
    field: Callable[..., mx.array], cond: Any, weight: Weight, *, weak: Callable[..., mx.array]
) -> Field:
    """Autoguidance (Karras et al. 2024, arXiv 2406.02507): from a worse model of the same thing.

    `weak`: a field like `field`, smaller or trained for less time, under the same condition; both
    may be unconditional, with cond None. Reported to improve quality at no loss of variety.
    """
    check_callable(weak, "weak", "weak(t, x, cond)")
    return _extrapolated(conditioned(field, cond), conditioned(weak, cond), weight)


def interval(weight: Weight, low: float, high: float) -> Weight:
    """`weight` for low <= t <= high, 1 outside: guidance in a limited interval.

    Kynkaanniemi et al. 2024 (arXiv 2404.07724), whose noise levels fall as our t grows. For a
    scalar t the weak field is not evaluated outside, which takes a time that can be read: guide a
    compiled field, and do not compile the guided one. The field jumps at both ends, where adaptive
    solvers spend extra steps and others do not notice. Raises ValueError unless low < high.
    """
    low = check_number(low, "low", "a time", lambda _: True)
    high = check_number(high, "high", "a time", lambda _: True)
    weight = _check_weight(weight)
    if not low < high:
        raise ValueError(f"low is {low} and high {high}; expected low < high, such as 0.2 and 0.8")

    def at(t):
        t = as_array(t, "t")
        inside = _within(t, low, high)
        if isinstance(inside, bool):
            return _at(weight, t) if inside else 1.0
        return mx.where(inside, _at(weight, t), 1.0)

    return at


def zero_init(field: Field, zero_before: float) -> Field:
    """`field(t, x)` for t >= `zero_before` and zero before; see `cfg_zero_star`."""

    zero_before = check_number(zero_before, "zero_before", "a time, such as 0.04")
    check_callable(field, "field", "field(t, x)")

    def zeroed(t, x):
        t, x = as_array(t, "t"), as_batch(x, "x")

        early = expand_time(t, x) < zero_before
        return tree_map(lambda v: mx.where(early, 0, v), _velocity(field, t, x))

    return zeroed


def _extrapolated(
    strong: Field,
    weak: Field,
    weight: Weight,
    base: Callable[[mx.array, mx.array], mx.array] = lambda v_strong, v_weak: v_weak,
) -> Field:
    """The field v_base + w (v_strong - v_base), where v_base = base(v_strong, v_weak)."""

    weight = _check_weight(weight)

    def field(t, x):
        t, x = as_array(t, "t"), as_batch(x, "x")
        w = _at(weight, t)
        v_strong = _velocity(strong, t, x)
        if isinstance(w, (int, float)) and w == 1:
            return v_strong
        if isinstance(w, mx.array):
            w = expand_time(w, x).astype(x.dtype)

        def extrapolated(v_strong, v_weak):
            v_base = base(v_strong, v_weak)
            return v_base + w * (v_strong - v_base)

        return tree_map(extrapolated, v_strong, _velocity(weak, t, x))

    return field


def _velocity(field: Field, t: mx.array, x: mx.array) -> Any:
    """What a field returned, or a model of bridges: arrays like x."""
    v = field(t, x)
    for part in v if isinstance(v, tuple | list) else [v]:
        check_returned(part, "field(t, x)", x.shape)
    return v


def _nearest(v: mx.array, u: mx.array) -> mx.array:
    """The multiple of `u` nearest to `v`, sample by sample; 0 where u is 0."""
    dtype = mx.float64 if u.dtype == mx.float64 else mx.float32
    a, b = (samplewise(z).astype(dtype) for z in (v, u))
    norm = mx.sum(b * b, axis=1)
    s = mx.sum(a * b, axis=1) / mx.where(norm == 0, 1, norm)
    return expand_time(s, u).astype(u.dtype) * u


def _check_weight(weight: Weight) -> Weight:
    if callable(weight) or isinstance(weight, int | float):
        return weight
    return as_array(weight, "weight")


def _at(weight: Weight, t: mx.array) -> Any:
    w = weight(t) if callable(weight) else weight
    return w if isinstance(w, int | float) else as_array(w, "the value of weight(t)")


def _within(t: mx.array, low: float, high: float) -> Any:
    """Whether low <= t <= high, in the precision of t: a bool for one time, an array for many.

    The solvers make one time from a number, so that reading it back waits for nothing. A bool lets
    a field that has no say stay unevaluated.
    """
    if t.ndim:
        return (t >= low) & (t <= high)
    first, last = (float(mx.array(end, dtype=t.dtype)) for end in (low, high))
    return first <= float(t) <= last


GUIDANCE: dict[str, Callable[..., Field]] = {
    "cfg": cfg,
    "cfg_zero_star": cfg_zero_star,
    "autoguidance": autoguidance,
}
