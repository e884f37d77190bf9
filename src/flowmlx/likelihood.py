"""Likelihoods: the log-density that a flow gives to data, by the change of variables.

Along the path of the flow that ends in x1, log p1(x1) = log p0(x(0)) - integral of div v dt over
[0, 1] (Chen et al. 2018, arXiv 1806.07366, theorem 1). The state and the integral are solved as one
pair from t = 1 to t = 0. Divergences come from vector-Jacobian products alone, so that any field
that can be trained can be scored.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from flowmlx.names import look_up
from flowmlx.solvers import Stats, odeint, rms

# Largest number of values in the cotangents of one pullback of `exact`: more were no faster, and a
# network needs some hundred times their memory.
CHUNK = 2**18

# (field, t, x) -> velocity and divergences (estimates, batch)
Divergence = Callable[[Callable, mx.array, Any], tuple[Any, mx.array]]


class Likelihood(NamedTuple):
    """What `log_prob` returns.

    `log_prob`: (batch,), nats per sample. `standard_error`: (batch,), nats, of the random
    divergences alone; None where fewer than two were drawn. `x0`: the source points, like x1.
    `stats`: of the solve; nfe counts evaluations of the field with their pullbacks.
    """

    log_prob: mx.array
    standard_error: mx.array | None
    x0: Any
    stats: Stats


def log_prob(
    field: Callable[[mx.array, Any], Any],
    x1: Any,
    log_p0: Callable[[Any], mx.array],
    *,
    key: mx.array | None = None,
    divergence: str = "hutchinson",
    samples: int = 1,
    probe: str = "rademacher",
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    step_size: float | None = None,
    max_steps: int = 10_000,
) -> Likelihood:
    """Log-density of data `x1` under the flow of `field(t, x)`, and the points it comes from.

    `x1`: (batch, ...) or a tree of such arrays; the field must treat samples independently.
    `log_p0`: log-density of the source, from states like x1 to (batch,) nats, such as
    `standard_normal_log_prob`. `divergence`: "exact" costs a pullback for every number in a sample;
    "hutchinson" is an unbiased estimate that costs `samples` of them, one for each random vector of
    the kind `probe` (a name in PROBES) drawn from `key` for the whole solve; two or more give a
    standard error. `method`, `step_size`, `max_steps`: as in `solvers.odeint`.

    `rtol` and `atol` hold for the state and for the integral of the divergence apart, so that
    neither hides in the size of the other: a step may err by atol nats plus rtol of what the
    integral has come to. A float32 log-density of 1000 nats has rounding errors of 1e-4; where
    matrix products round to ten bits (TF32), start with MLX_ENABLE_TF32=0.

    Raises ValueError for unknown names, a missing key and wrong shapes; else as odeint does.
    """
    batch = _batch_size(x1)
    trace = look_up(DIVERGENCES, divergence, "divergence")(x1, key, samples, probe)
    estimates = samples if divergence == "hutchinson" else 1

    def pair(t: mx.array, state: tuple) -> tuple:
        return trace(field, t, state[0])

    start = (x1, mx.zeros((estimates, batch), dtype=_sum_dtype(x1)))
    solution = odeint(
        pair,
        start,
        [1.0, 0.0],
        method=method,
        rtol=rtol,
        atol=atol,
        step_size=step_size,
        max_steps=max_steps,
        norm=_pair_norm,
    )
    x0, integrals = tree_map(lambda xs: xs[-1], solution.xs)
    return x0, integrals
