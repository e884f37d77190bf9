"""Conversions: between what networks predict, and between schedules.

On an affine path with one noise, x_t = alpha x1 + beta x0, the expectations of x1, x0 and the
velocity at a point x obey the same equations as the samples do,

    x = alpha x1 + beta x0,        velocity = alpha' x1 + beta' x0,        score = -x0 / beta,

so that x and one of the four give the other three. Here x0 is the path's source, its own noise eps
where it takes no x0. The first two equations hold for any source and coupling, the one of the score
for a source N(0, I) that is independent of x1.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flowmlx.fields import Field
from flowmlx.names import look_up
from flowmlx.paths import (
    AffinePath,
    check_margin,
    expand_time,
    is_absent,
    path_time,
    time_derivative,
)
from flowmlx.solvers.arrays import as_array, as_batch, as_numpy, check_callable, check_returned
from flowmlx.solvers.exponential import Coefficients

# Alpha, beta and their time derivatives, by an older name.
Schedule = Coefficients


def amplitudes(path: AffinePath, t: mx.array) -> tuple[mx.array, mx.array]:
    """Alpha and beta at `t`, of any shape, for a path with one noise, be it x0 or its own.

    Raises ValueError where the path has noise of its own beside x0, TypeError where it is not
    affine.
    """
    _check_affine(path)
    t = as_array(t, "t")
    alpha, beta, gamma = path.coefficients(t)
    if not is_absent(beta) and not is_absent(gamma):
        raise ValueError(
            f"{path} has noise of its own beside x0, so a point and its velocity do not determine "
            "x1, x0 and the score; predict the velocity, train a score beside it, or take a path "
            "without that noise (sigma=0)"
        )
    noise = gamma if is_absent(beta) else beta
    return _like(alpha, t), _like(noise, t)


def _check_affine(path: AffinePath) -> None:
    if not isinstance(path, AffinePath):
        raise TypeError(
            f"path is {path!r}; a conversion needs the coefficients of an AffinePath, such as "
            "paths.Linear()"
        )


def schedule(path: AffinePath, t: mx.array) -> Coefficients:
    """Alpha, beta and their derivatives at `t`, of any shape. Raises as `amplitudes` does."""
    t = as_array(t, "t")
    (alpha, beta), (d_alpha, d_beta) = time_derivative(lambda t: amplitudes(path, t), t)
    return Coefficients(alpha, beta, d_alpha, d_beta)


def host_amplitudes(path: AffinePath, ts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Alpha and beta at times `ts` as NumPy float64, for solvers that plan their steps ahead.

    Raises as `amplitudes` does.
    """
    with mx.stream(mx.cpu):  # float64 exists on the CPU only
        t = mx.array(as_numpy(ts, "ts", np.float64).tolist(), dtype=mx.float64)
        alpha, beta = amplitudes(path, t)
        return as_numpy(alpha), as_numpy(beta)


def convert(
    value: mx.array, *, given: str, wanted: str, path: AffinePath, t: mx.array, x: mx.array
) -> mx.array:
    """Turn `value`, the velocity, x1, x0 or score at (t, x), into another of these.

    `given`, `wanted`: names in KINDS; `value`, `x`: (batch, ...); `t`: scalar or (batch,), in
    `path.interval`. The result has the dtype of x. The score needs a source N(0, I) independent of
    x1: under an OT coupling it is not exact.

    At the ends of the interval results are limits. Where no noise is left (beta = 0), x1 gives
    x0 = 0, the mean of a source that is independent of x1, and the velocity that follows from it.

    Raises ValueError for an unknown name, for a path with noise of its own beside x0, and at times
    at which the wanted value is not determined: x1 or velocity from x0 or score where alpha = 0,
    the score from another where beta = 0, and anything from the velocity where
    alpha beta' = alpha' beta. Inside mx.compile, where times cannot be read, the result is not
    finite there. Raises TypeError for a path that is not affine.
    """
    value, x = as_batch(value, "value"), as_batch(x, "x")
    if value.shape != x.shape:
        raise ValueError(f"value has shape {value.shape} and x {x.shape}; expected one for both")
    times = expand_time(path_time(t, x), x)
    p, q = factors(path, given, wanted, times)
    if given == wanted:
        return value
    _check_determined(p, q, path, given, wanted, times)
    return (p * value + q * x).astype(x.dtype)


def _check_determined(p: Any, q: Any, path: AffinePath, given: str, wanted: str, t: mx.array):
    """Refuse times at which a conversion has no finite coefficients, and say why."""
    try:
        finite = mx.isfinite(p) & mx.isfinite(q)
        determined = as_numpy(mx.broadcast_to(finite, t.shape)).ravel()
    except ValueError:  # traced by mx.compile or mx.vmap
        return
    if determined.all():
        return
    where = t.reshape(-1)[int(determined.argmin())]
    s = schedule(path, where)
    if wanted == "score" and s.beta.item() == 0:
        reason = "x holds no noise there (beta = 0), and the score is 1 / beta of it"
    elif s.alpha.item() == 0 and given != "velocity":
        reason = "x holds none of x1 there (alpha = 0)"
    elif s.det.item() == 0:
        reason = "the velocity says nothing there that x does not (alpha beta' = alpha' beta)"
    else:
        reason = "the path's velocity is infinite there"
    raise ValueError(
        f"the {wanted} does not follow from the {given} at t = {where.item():g} of {path}: "
        f"{reason}; convert at other times"
    )


def factors(path: AffinePath, given: str, wanted: str, t: mx.array) -> tuple[Any, Any]:
    """The coefficients p(t), q(t) of a conversion: wanted = p given + q x.

    `t` of any shape. Raises as `convert` does.
    """
    for name in (given, wanted):
        look_up(KINDS, name, "kind")
    t = as_array(t, "t")
    if given == wanted:
        return 1.0, 0.0
    s = schedule(path, t)
    start, end = ("x0" if kind == "score" else kind for kind in (given, wanted))
    p, q = _FACTORS[start, end](s)
    if given == "score":
        p = -s.beta * p
    if wanted == "score":
        p, q = -p / s.beta, -q / s.beta
    return p, q


def to_velocity(model: Field, prediction: str, path: AffinePath, *, margin: float = 0.05) -> Field:
    """The velocity field of a `model(t, x)` that predicts x1, x0 or score (names in KINDS).

    A third argument, such as a condition, is handed on.

    Sample it with any solver, on [0, 1]. From x1 the velocity is x1 - x divided by the share
    beta / (alpha + beta) of noise that is left, from x0 it is x - x0 divided by the share of data.
    Near one end the share goes to 0, and the network's error is divided by it as well. So the
    divisor is at least `margin`: with Linear and "x1" the velocity is
    (model - x) / max(1 - t, margin), and 0.05 is what Li & He 2025 (JiT, arXiv 2511.13720) take. A
    larger margin leaves noise in the samples; a smaller one leaves errors of the network, and takes
    an adaptive solver more steps.

    Time is held inside `path.interval` for the conversion, not for the model. Raises ValueError for
    a margin that is not above 0 and below 0.5, and as `convert` does.
    """
    look_up(KINDS, prediction, "kind")
    check_callable(model, "model", "model(t, x)")
    if prediction == "velocity":
        return model
    margin = check_margin(margin)
    _check_affine(path)
    low, high = path.interval
    amplitudes(path, mx.array(low))  # refuse before the model is asked

    def velocity(t: mx.array, x: mx.array, *cond: Any) -> mx.array:
        t, x = as_array(t, "t"), as_batch(x, "x")
        s = schedule(path, expand_time(mx.clip(t, low, high), x))
        # As for the linear path, on which x / total moves at time alpha / total.
        total = s.alpha + s.beta
        if prediction == "x1":
            p = -s.det / total / mx.maximum(s.beta / total, margin)
        else:
            p = s.det / total / mx.maximum(s.alpha / total, margin)
        q = (s.d_alpha + s.d_beta - p) / total
        p = -s.beta * p if prediction == "score" else p
        predicted = check_returned(model(t, x, *cond), "model(t, x)", x.shape)
        return (p * predicted + q * x).astype(x.dtype)

    return velocity


def reschedule(field: Field, path: AffinePath, new_path: AffinePath) -> Field:
    """A velocity `field(t, x)` of `path` as that of `new_path`, without training again.

    Two schedules have the same ratios alpha / beta, at different times: where new_path at t has c
    times the alpha and beta of path at s, the new flow at t is c times the old one at s (compare
    Lipman et al. 2024, arXiv 2412.06264). This holds for any source and coupling. Sample the result
    with any solver, on [0, 1]; at t = 1 the samples are those of `field`.

    Time is held inside the `interval` of each path, and at the first or last s where the new
    schedule passes ratios that the old one does not have, as VPDiffusion below alpha(0).
    Raises ValueError where alpha / beta of a path does not increase, and as `amplitudes` does.
    """
    check_callable(field, "field", "field(t, x)")
    _check_increases(path, may_rest=False)
    _check_increases(new_path, may_rest=True)
    low, high = new_path.interval

    def rescheduled(t: mx.array, x: mx.array) -> mx.array:
        t, x = as_array(t, "t"), as_batch(x, "x")
        new = schedule(new_path, mx.clip(t, low, high))
        s = _matching_time(path, new.alpha, new.beta)
        old = schedule(path, s)
        # Both are c times the other, so c is the ratio of their lengths, which are never 0.
        c = _length(new.alpha, new.beta) / _length(old.alpha, old.beta)
        y = (x / expand_time(c, x)).astype(x.dtype)
        # alpha' x1 + beta' x0 of the new schedule, with the old one's x1 and x0 at (s, y).
        p = (new.d_beta * old.alpha - new.d_alpha * old.beta) / old.det
        q = (new.d_alpha * old.d_beta - new.d_beta * old.d_alpha) / old.det
        v = check_returned(field(s, y), "field(t, x)", x.shape)
        return (expand_time(p, x) * v + expand_time(q, x) * y).astype(x.dtype)

    return rescheduled


def _matching_time(path: AffinePath, alpha: mx.array, beta: mx.array) -> mx.array:
    """The time in the path's interval where its alpha / beta is that of `alpha` and `beta`.

    A search that needs no host: in each round the interval is cut into equal pieces, and the one
    that holds the time is kept. The last ones are as long as a rounding near t = 1; the outermost
    two stand for the ends, where conversions are limits.
    """
    pieces, rounds = 64, 4
    low, high = path.interval
    start, width = mx.zeros_like(alpha), 1.0  # as fractions of the interval
    for _ in range(rounds):
        width /= pieces
        cuts = start[..., None] + width * mx.arange(1, pieces, dtype=alpha.dtype)
        a, b = amplitudes(path, low * (1 - cuts) + high * cuts)
        # a / b < alpha / beta, without dividing by what is 0 at an end.
        start = start + width * mx.sum(a * beta[..., None] < alpha[..., None] * b, axis=-1)
    inner = mx.where(start + width == 1, 1.0, start + width / 2)
    fraction = mx.where(start == 0, 0.0, inner)
    return low * (1 - fraction) + high * fraction


def _length(alpha: mx.array, beta: mx.array) -> mx.array:
    return mx.sqrt(alpha * alpha + beta * beta)


def _check_increases(path: AffinePath, *, may_rest: bool) -> None:
    """Refuse a path whose alpha / beta, of derivative -det / beta^2, falls or (also) rests."""
    _check_affine(path)
    t = mx.linspace(*path.interval, 257)
    det = as_numpy(schedule(path, t).det)
    wrong = ~np.isfinite(det) | (det > 0) | ((det == 0) & (not may_rest))
    if wrong.any():
        where = t[int(wrong.argmax())].item()
        raise ValueError(
            f"alpha / beta of {path} does not increase at t = {where:g}, so the path cannot "
            "stand for another there; narrow its interval to where it does, or take a path from "
            "noise to data, such as paths.Linear()"
        )


def _like(coefficient: mx.array | float, t: mx.array) -> mx.array:
    """A coefficient, which may be a constant, as an array like `t`."""
    constant = not isinstance(coefficient, mx.array)
    return mx.full(t.shape, coefficient, t.dtype) if constant else coefficient


def _inverse(beta: mx.array) -> mx.array:
    """1 / beta; 0 where there is no noise, for x0 is then 0 on average."""
    return mx.where(beta == 0, 0.0, 1 / beta)


def _ratio(a: mx.array, b: mx.array) -> mx.array:
    """a / b; 0 where a is 0, even if b is 0 too."""
    return mx.where(a == 0, 0.0, a / b)


# What can be predicted, and converted.
KINDS: dict[str, str] = {
    "velocity": "dx/dt of the flow",
    "x1": "the data point",
    "x0": "the source point, or the noise of a path that brings its own source",
    "score": "gradient of the log-density of x_t",
}

# (given, wanted) -> the schedule's p and q in wanted = p given + q x. The score is an x0 with
# another scale.
_FACTORS: dict[tuple[str, str], Callable[[Coefficients], tuple]] = {
    ("velocity", "x1"): lambda s: (-s.beta / s.det, s.d_beta / s.det),
    ("velocity", "x0"): lambda s: (
        _ratio(s.alpha, s.det),
        mx.where(s.alpha == 0, 1 / s.beta, -s.d_alpha / s.det),
    ),
    ("x1", "velocity"): lambda s: (
        s.d_alpha - s.alpha * s.d_beta * _inverse(s.beta),
        s.d_beta * _inverse(s.beta),
    ),
    ("x1", "x0"): lambda s: (-s.alpha * _inverse(s.beta), _inverse(s.beta)),
    ("x0", "velocity"): lambda s: (
        s.d_beta - s.beta * _ratio(s.d_alpha, s.alpha),
        _ratio(s.d_alpha, s.alpha),
    ),
    ("x0", "x1"): lambda s: (-s.beta / s.alpha, 1 / s.alpha),
    ("x0", "x0"): lambda s: (1.0, 0.0),
}
