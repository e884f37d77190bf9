"""Sampling: carry source points along a trained field."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from flowmlx.solvers import Solution, odeint


def sample(
    field,
    x0: mx.array,
    *,
    ts: Sequence[float] | np.ndarray = (0.0, 1.0),
    method: str = "dopri5",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    step_size: float | None = None,
) -> Solution:
    """Carry source points `x0` (batch, ...) from t = 0 to the data at t = 1 along `field(t, x)`.

    The samples are `xs[-1]` of the `Solution`; `xs[k]` is the state at `ts[k]`. Fixed methods take
    steps of `step_size` (None: from time to time in `ts`); adaptive ones keep the local error below
    `atol + rtol |x|`. Raises as `solvers.odeint` does.
    """
    return odeint(field, x0, ts, method=method, rtol=rtol, atol=atol, step_size=step_size)
