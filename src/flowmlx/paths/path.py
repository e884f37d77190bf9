"""What a path is, and the points and times that all paths take."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from flowmlx.solvers.arrays import as_array, as_batch, as_numpy, check_number, describe


class PathSample(NamedTuple):
    """Points on a path: time `t` (batch,); point `xt`, velocity `ut` and noise `eps` (batch, ...).

    `x0`, `x1`: the ends of their paths; x0 is eps where the path does not use x0.
    """

    t: mx.array
    xt: mx.array
    ut: mx.array
    eps: mx.array
    x0: mx.array
    x1: mx.array


class Path(Protocol):
    """What training asks of a path; `AffinePath` and `GaussianPath` provide it."""

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds that training times come from; inside [0, 1] where an end is singular."""
        ...

    @property
    def gaussian_source(self) -> bool:
        """Whether the path brings its own N(0, I) source and ignores x0."""
        ...

    def sample(self, x0: mx.array, x1: mx.array, t: mx.array, *, key: mx.array) -> PathSample:
        """Draw x_t and its velocity for paired `x0`, `x1` (batch, ...) at times `t` (batch,)."""
        ...


def check_path(path: Any) -> None:
    """Refuse what is no path."""
    if isinstance(path, type) or not hasattr(path, "sample"):
        which = path.__name__ if isinstance(path, type) else "paths.Linear"
        came = f"the class {which}" if isinstance(path, type) else describe(path)
        raise TypeError(f"path is {came}; expected a path, such as {which}()")


def path_time(t: Any, x: mx.array) -> mx.array:
    """Times on a path; those that are numbers on the host are refused outside of [0, 1]."""
    if not isinstance(t, mx.array):
        host = as_numpy(t, "t", "float64")
        outside = host[~((host >= 0) & (host <= 1))]
        if outside.size:
            raise ValueError(f"t holds {outside[0]:g}; expected times in [0, 1]")
    return as_array(t, "t", mx.float64 if x.dtype == mx.float64 else mx.float32)


def expand_time(t: mx.array, x: mx.array) -> mx.array:
    """Give `t`, a scalar or (batch,), trailing axes of length 1 so that it broadcasts over `x`.

    Raises ValueError where `t` is neither.
    """
    t, x = as_array(t, "t"), as_batch(x, "x")
    if t.ndim == 0:
        return t
    if t.ndim != 1 or t.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"t has shape {t.shape}; expected a scalar or ({x.shape[0]},), one time per sample of x"
        )
    return t.reshape(-1, *([1] * (x.ndim - 1)))


def time_derivative(f: Callable, t: mx.array) -> tuple[list, list]:
    """Values and elementwise time derivatives of `f(t) -> tuple of arrays or floats`.

    A float stands for a constant, of derivative 0.0. Element k of each output must depend on
    element k of `t` alone, as it does where the samples of a batch are independent of each other.
    """
    t = as_array(t, "t")
    values = list(f(t))
    derivatives: list[mx.array | float] = [0.0] * len(values)
    varying = [k for k, value in enumerate(values) if isinstance(value, mx.array)]
    if varying:
        _, tangents = mx.jvp(lambda t: [f(t)[k] for k in varying], [t], [mx.ones_like(t)])
        for k, tangent in zip(varying, tangents, strict=True):
            derivatives[k] = tangent
    return values, derivatives


def alike(**arrays: Any) -> list[mx.array]:
    """Points (batch, ...) of one shape, by their names."""
    points = [as_batch(value, name) for name, value in arrays.items()]
    (first, x), *others = zip(arrays, points, strict=True)
    for name, other in others:
        if other.shape != x.shape:
            raise ValueError(
                f"{first} has shape {x.shape} and {name} {other.shape}; a path joins them one to "
                "one, so give arrays of the same shape (batch, ...)"
            )
    return points


def check_margin(margin: float) -> float:
    """Refuse a distance from an end of [0, 1] that is not above 0 and below 0.5."""
    expected = "a number above 0 and below 0.5, such as 1e-3"
    return check_number(margin, "margin", expected, lambda m: 0 < m < 0.5)
