"""Regression losses: what the field is trained on.

Four choices that know nothing of each other: what the network predicts, in which quantity its error
is squared, which times it sees, and how much each time counts. On a path the error of one quantity
is that of another times a function of time, so a loss is always

    mean of weight(t) p(t)^2 |model(t, xt) - target|^2

with the p of `conversions` from the prediction to the quantity of the loss.
"""

import math
from collections.abc import Callable

import mlx.core as mx

from flowmlx import times
from flowmlx.conversions import amplitudes, factors
from flowmlx.names import look_up
from flowmlx.paths import AffinePath, Path, PathSample, check_margin, check_path, expand_time
from flowmlx.solvers.arrays import (
    as_array,
    as_batch,
    check_callable,
    check_key,
    check_returned,
    check_rows,
    describe,
)


def velocity_loss(field, sample: PathSample) -> mx.array:
    """Mean squared error between `field(t, xt)` and the path's velocity `ut`, a scalar.

    The mean runs over batch and dimensions, so the value is comparable across both (Lipman et al.
    2023, Eq. 9, divided by the dimension). Raises ValueError where the field returns another shape.
    """
    return mx.mean(mx.square(_output(field, sample) - sample.ut))


def _output(field, sample: PathSample) -> mx.array:
    """What the field returns at a sample, an array of its shape."""
    return check_returned(field(sample.t, sample.xt), "field(t, x)", sample.xt.shape)


def unweighted(path: Path, t: mx.array) -> float:
    """Every time counts the same."""
    return 1.0


def min_snr(path: AffinePath, t: mx.array, *, most: float = 5.0) -> mx.array:
    """The signal-to-noise ratio (alpha / beta)^2, `most` where it is larger.

    A weight for errors of x1 (Hang et al. 2023, arXiv 2303.09556, gamma = 5): that is for
    `regress="x1"`, whatever the network predicts. Raises ValueError where
    `conversions.amplitudes` does: on a path with noise of its own.
    """
    t = as_array(t, "t")
    try:
        alpha, beta = amplitudes(path, t)
    except ValueError as error:
        raise ValueError(
            f"the weight min_snr compares the data with one noise, and {path} has noise of its own "
            "beside x0; take another weight, or sigma 0"
        ) from error
    return mx.minimum(mx.square(alpha / beta), most)


def cosmap(path: Path, t: mx.array) -> mx.array:
    """2 / (pi - 2 pi t + 2 pi t^2), most in the middle (Esser et al. 2024, arXiv 2403.03206)."""
    t = as_array(t, "t")
    return 2 / (math.pi * (1 - 2 * t + 2 * t * t))


def brownian(path: Path, t: mx.array) -> mx.array:
    """4 t (1 - t), for the velocity of a path with the noise of a Brownian bridge, as Bridge.

    The variance of gamma' eps is sigma^2 (1 / (4 t (1 - t)) - 1); unweighted, a few times near the
    ends make up most of the loss and of its variance.
    """
    t = as_array(t, "t")
    return 4 * t * (1 - t)


def flow_matching_loss(
    path: Path,
    *,
    prediction: str = "velocity",
    regress: str | Callable[..., mx.array] = "velocity",
    time_sampler: times.TimeSampler = times.uniform,
    weight: Callable = unweighted,
    margin: float = 0.05,
) -> Callable:
    """Make the loss `(field, x0, x1, *, key) -> scalar` of conditional flow matching along `path`.

    In the loss, `x0` and `x1` are paired batches (batch, ...), and `key` determines the times and
    the noise of the path.

    `prediction`: what the network outputs, a name in TARGETS. For x1 and x0, sample with
    `conversions.to_velocity`. `regress`: the quantity whose squared error is the loss, a name in
    TARGETS; or your own function `(field, sample) -> scalar`, such as `velocity_loss`, which
    replaces prediction and weight. `time_sampler`: from `flowmlx.times`. `weight`: a function
    (path, t) -> a number, or an array like t; see WEIGHTS. `margin`: if prediction and regress
    differ, the error of one is the error of the other times a factor, which is limited to
    1 / margin. For Linear, "x1" and "velocity" it is 1 / max(1 - t, margin) (Li & He 2025, JiT,
    arXiv 2511.13720).

    Raises ValueError for unknown names, for a path on which the prediction does not determine the
    velocity, and unless 0 < margin < 0.5. The loss raises ValueError if the output of the network
    does not have the shape of its target.
    """
    check_path(path)
    check_callable(time_sampler, "time_sampler", "(n, *, key, interval)")
    check_callable(weight, "weight", "weight(path, t)")
    if isinstance(regress, str):
        regress = _regression(path, prediction, regress, weight, margin)
    elif not callable(regress):
        raise TypeError(f"regress is {describe(regress)}; expected a function or one of {NAMES}")
    elif prediction != "velocity" or weight is not unweighted:
        raise ValueError(
            "prediction and weight are of no use to a regress function of your own; leave them out "
            f"or give regress a name: {NAMES}"
        )

    def loss(field, x0: mx.array, x1: mx.array, *, key: mx.array) -> mx.array:
        check_callable(field, "field", "field(t, x)")
        x0, x1 = as_batch(x0, "x0"), as_batch(x1, "x1")
        check_rows(x0, "x0")
        check_rows(x1, "x1")
        time_key, noise_key = mx.random.split(check_key(key))
        t = time_sampler(x1.shape[0], key=time_key, interval=path.interval)
        return regress(field, path.sample(x0, x1, t, key=noise_key))

    return loss


def _regression(path, prediction: str, regress: str, weight: Callable, margin: float) -> Callable:
    """The function (field, sample) -> scalar that `flow_matching_loss` describes."""
    target = look_up(TARGETS, prediction, "prediction")
    look_up(TARGETS, regress, "quantity to regress")
    margin = check_margin(margin)
    for wanted in ("velocity", regress):  # refuse before training what could not be sampled
        factors(path, prediction, wanted, mx.array(0.5))
    weight(path, mx.array(0.5))

    def squared_error(field, sample: PathSample) -> mx.array:
        scale = weight(path, sample.t)
        if regress != prediction:
            p, _ = factors(path, prediction, regress, sample.t)
            scale = scale * mx.square(mx.clip(p, -1 / margin, 1 / margin))
        error = mx.square(_output(field, sample) - target(sample))
        if isinstance(scale, mx.array):
            scale = expand_time(scale, error)
        return mx.mean(scale * error)

    return squared_error


# What a network can be trained to predict, and what an error can be measured in -> its value.
TARGETS: dict[str, Callable[[PathSample], mx.array]] = {
    "velocity": lambda sample: sample.ut,
    "x1": lambda sample: sample.x1,
    "x0": lambda sample: sample.x0,
}

NAMES = ", ".join(TARGETS)

WEIGHTS: dict[str, Callable] = {
    "unweighted": unweighted,
    "min_snr": min_snr,
    "cosmap": cosmap,
    "brownian": brownian,
}
