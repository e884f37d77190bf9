"""Simulations: rows that a Python function draws, fresh at every step."""

import inspect
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flowmlx.data import streams
from flowmlx.data.arrays import Standardizer, Table
from flowmlx.keys import fold_in
from flowmlx.solvers.arrays import as_numpy
from flowmlx.spaces.ends import Rows, Source, named_source
from flowmlx.spaces.kind import Ends, Kind, Request
from flowmlx.spaces.space import Space

# Rows that the units are taken from.
UNITS_OF = 10_000


def read(request: Request) -> Ends:
    """Draw rows of `request.target`, a function (n, *, key) -> (n, d), to know their units.

    Raises ValueError for draws of another shape, and for columns that are all constant; TypeError
    for a function that does not take (n, *, key).
    """
    simulator, key = request.target, request.key
    _check_signature(simulator)
    drawn = simulator(UNITS_OF, key=fold_in(key, "units"))
    values = _values(drawn, UNITS_OF)
    columns = tuple(f"x{k}" for k in range(values.shape[1]))
    units = Standardizer.fit(Table(columns, values))
    draw = _in_units(simulator, units)
    train, test = (
        Rows(as_numpy(draw(request.samples, key=fold_in(key, name)))) for name in ("train", "test")
    )
    form = "mlx" if isinstance(drawn, mx.array) else "numpy"
    space = Space("simulation", units, form=form)
    source = named_source(request.source, units)
    return Ends(space, source, streams.generated(draw), train, test, _fingerprint(units))


def _check_signature(simulator: Callable) -> None:
    try:
        inspect.signature(simulator).bind(UNITS_OF, key=None)
    except ValueError:  # of a function in C, which does not tell
        return
    except TypeError as error:
        raise TypeError(
            f"target is a function that does not take (n, *, key): {error}; expected one that "
            "draws n rows from an MLX key, simulator(n, key=key) -> (n, columns)"
        ) from None


def _fingerprint(units: Standardizer) -> str:
    """Tells simulators apart by their units, to digits that do not depend on the processor."""
    return ", ".join(f"{x:.3g}" for x in (*units.mean, *units.scale))


def _in_units(simulator: Callable, units: Standardizer) -> Callable[..., mx.array]:
    """The simulator's rows in model space."""
    varies = units.scale > 0
    mean, scale = (mx.array(x[varies].astype(np.float32)) for x in (units.mean, units.scale))
    kept = mx.array(np.flatnonzero(varies))

    def draw(n: int, *, key: mx.array) -> mx.array:
        drawn = simulator(n, key=key)
        if isinstance(drawn, mx.array):  # in MLX alone, which can be compiled
            return (drawn.reshape(n, -1)[:, kept] - mean) / scale
        return units.transform(_values(drawn, n))

    return draw


def _values(drawn: Any, n: int) -> np.ndarray:
    """Draws on the host, checked to be `n` rows of finite numbers."""
    values = as_numpy(drawn, "the value of simulator(n, key=key)", np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or len(values) != n:
        raise ValueError(
            f"simulator({n}, key=key) returned shape {values.shape}; expected ({n}, columns)"
        )
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"simulator({n}, key=key): row {row}, column {column} is not finite")
    return values


def source(request: Request, space: Space) -> Source:
    """The source that a request names."""
    return named_source(request.source, space.transform)


KIND = Kind(
    takes=lambda target, time_column: callable(target), read=read, source=source, drawn=True
)
