"""Regression losses: what the field is trained on."""

from collections.abc import Callable

import mlx.core as mx

from flowmlx import times
from flowmlx.paths import Path, PathSample


def velocity_loss(field, sample: PathSample) -> mx.array:
    """Mean squared error between `field(t, xt)` and the path's velocity `ut`, a scalar.

    The mean runs over batch and dimensions, so the value is comparable across both (Lipman et al.
    2023, Eq. 9, divided by the dimension).
    """
    return mx.mean(mx.square(field(sample.t, sample.xt) - sample.ut))


def flow_matching_loss(
    path: Path, *, time_sampler=times.uniform, regress=velocity_loss
) -> Callable:
    """Loss `(field, x0, x1, *, key) -> scalar` of conditional flow matching along `path`.

    `key` fixes the times and the path's noise; `x0`, `x1`: paired batches (batch, ...).
    """

    def loss(field, x0: mx.array, x1: mx.array, *, key: mx.array) -> mx.array:
        time_key, noise_key = mx.random.split(key)
        t = time_sampler(x1.shape[0], key=time_key, interval=path.interval)
        return regress(field, path.sample(x0, x1, t, key=noise_key))

    return loss
