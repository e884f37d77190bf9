"""Time samplers: where on [0, 1] a training step looks.

A sampler is a function `(n, *, key, interval) -> (n,)`, float32 times on a path's interval. Its
parameters are further keywords: `functools.partial(logit_normal, mean=-0.8, std=0.8)` is a sampler.
`base` is the sampler of the uniform times that the others bend, so `stratified` combines with any.
"""

import functools
import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from flowmlx.solvers.arrays import as_numpy, check_number, draws
from flowmlx.solvers.grids import SHIFT, shift

__all__ = [
    "TIME_SAMPLERS",
    "UNIT",
    "TimeSampler",
    "beta",
    "logit_normal",
    "shift",
    "shifted",
    "stratified",
    "uniform",
]

TimeSampler = Callable[..., mx.array]
UNIT = (0.0, 1.0)


@draws
def uniform(n: int, *, key: mx.array, interval: tuple[float, float] = UNIT) -> mx.array:
    """Draw `n` independent times (n,), float32, uniform on `interval`."""
    return mx.random.uniform(*_ends(interval), (n,), key=key)


@draws
def stratified(n: int, *, key: mx.array, interval: tuple[float, float] = UNIT) -> mx.array:
    """Draw one time in each of `n` equal parts of `interval`, in random order.

    Each is uniform on the interval, and their mean over a batch has a far smaller variance.
    """
    order_key, time_key = mx.random.split(key)
    order = mx.random.permutation(n, key=order_key)
    return _onto(interval, (order + mx.random.uniform(shape=(n,), key=time_key)) / max(n, 1))


@draws
def logit_normal(
    n: int,
    *,
    key: mx.array,
    interval: tuple[float, float] = UNIT,
    mean: float = 0.0,
    std: float = 1.0,
    base: TimeSampler = uniform,
) -> mx.array:
    """Draw `n` times whose logit log(t / (1 - t)) is N(mean, std^2), scaled to `interval`.

    A positive `mean` looks more at the data, a negative one at the source. Esser et al. 2024 (SD3,
    arXiv 2403.03206, section 3.1) count time the other way: their mean m is -m here. Raises
    ValueError where `std` is not positive.
    """
    _check_positive(std=std)
    z = math.sqrt(2) * mx.erfinv(2 * base(n, key=key, interval=UNIT) - 1)
    return _onto(interval, mx.sigmoid(mean + std * z))


@draws
def beta(
    n: int,
    *,
    key: mx.array,
    interval: tuple[float, float] = UNIT,
    a: float = 1.0,
    b: float = 1.5,
    base: TimeSampler = uniform,
) -> mx.array:
    """Draw `n` times from the beta distribution, density t^(a-1) (1-t)^(b-1), scaled to `interval`.

    A larger `a` looks more at the data, a larger `b` at the source; a = 1, b = 1.5 is what Black et
    al. 2024 (arXiv 2410.24164) train robots with. By inverse transform, through a table in which
    the distribution function errs by less than 1e-4. Raises ValueError where `a` or `b` is not
    positive.
    """
    _check_positive(a=a, b=b)
    table = mx.array(_beta_quantiles(a, b), dtype=mx.float32)
    pieces = table.size - 1
    angle = mx.arcsin(mx.sqrt(base(n, key=key, interval=UNIT)))
    place = angle * (pieces / (0.5 * math.pi))
    k = mx.minimum(place.astype(mx.int32), pieces - 1)
    return _onto(interval, table[k] + (place - k) * (table[k + 1] - table[k]))


@draws
def shifted(
    n: int,
    *,
    key: mx.array,
    interval: tuple[float, float] = UNIT,
    factor: float = SHIFT,
    base: TimeSampler = uniform,
) -> mx.array:
    """Draw `n` times of `base`, moved by `shift` with `factor` and scaled to `interval`.

    1/3 looks more at the source, as the `shifted` grid of solvers does, 3 at the data.
    """
    return _onto(interval, shift(base(n, key=key, interval=UNIT), factor))


def _ends(interval: tuple[float, float]) -> tuple[float, float]:
    numbers = as_numpy(interval, "interval")
    if numbers.shape != (2,) or not numbers[0] <= numbers[1]:
        raise ValueError(f"interval is {interval!r}; expected two times, such as (0.0, 1.0)")
    return interval


def _onto(interval: tuple[float, float], u: mx.array) -> mx.array:
    """From [0, 1] to `interval`, whose ends rounding does not pass."""
    low, high = _ends(interval)
    return mx.clip(low + (high - low) * u, low, high)


@functools.lru_cache
def _beta_quantiles(a: float, b: float, pieces: int = 1024) -> np.ndarray:
    """Quantiles at sin(angle)^2 for equal steps of the angle from 0 to pi/2: dense at both ends."""
    from scipy.special import betaincinv

    return betaincinv(a, b, np.sin(np.linspace(0, 0.5 * np.pi, pieces + 1)) ** 2)


def _check_positive(**parameters: float) -> None:
    for name, value in parameters.items():
        expected = "a number above 0, such as 1.0"
        check_number(value, name, expected, lambda v: 0 < v < math.inf)


TIME_SAMPLERS: dict[str, TimeSampler] = {
    "uniform": uniform,
    "stratified": stratified,
    "logit_normal": logit_normal,
    "beta": beta,
    # Towards the data, unlike the default: saved runs go by this name.
    "shifted": functools.partial(shifted, factor=3.0),
}
