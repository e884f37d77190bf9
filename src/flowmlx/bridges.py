"""Bridges between two distributions: velocity and score, trained together.

Along a path with the noise of a Brownian bridge, gamma = sigma sqrt(t (1 - t)), a model is a
function `(t, x) -> (v, s)`: the velocity of the flow, and the score of x_t times sigma^2 / 2, in
which the drift of the process with noise is v + s. It may take a condition, `(t, x, cond=None)`, as
in `flowmlx.conditions`. Between samples that an entropic plan has paired
that process is the Schroedinger bridge ([SF]2M: Tong et al. 2024, arXiv 2307.03672).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from flowmlx.conditions import conditioned
from flowmlx.fields import in_eval_mode
from flowmlx.paths import BrownianPath, PathSample, check_path, expand_time
from flowmlx.solvers import Solution, sdeint
from flowmlx.solvers.arrays import (
    as_batch,
    as_number,
    as_numpy,
    check_callable,
    check_returned,
    describe,
)

Model = Callable[..., tuple[mx.array, mx.array]]


class TwoHeads(nn.Module):
    """A model from one network, whose output is twice as long as x: v, then s."""

    def __init__(self, net: Callable):
        super().__init__()
        check_callable(net, "net", "net(t, x)")
        self.net = net

    def __call__(self, t: mx.array, x: mx.array, cond: Any = None) -> tuple[mx.array, mx.array]:
        """Velocity and scaled score, each like x. Raises ValueError for another length."""
        x = as_batch(x, "x")
        out = check_returned(conditioned(self.net, cond)(t, x), "the network")
        if out.shape[-1] != 2 * x.shape[-1]:
            raise ValueError(
                f"the network returned shape {out.shape} for x {x.shape}; expected twice as many "
                f"in the last axis, such as MLP({x.shape[-1]}, out_dim={2 * x.shape[-1]}, ...)"
            )
        v, s = mx.split(out, 2, axis=-1)
        return v, s


class TwoNetworks(nn.Module):
    """A model from two networks, each with an output like x: one for v, one for s."""

    def __init__(self, velocity: Callable, score: Callable):
        super().__init__()
        check_callable(velocity, "velocity", "velocity(t, x)")
        check_callable(score, "score", "score(t, x)")
        self.velocity, self.score = velocity, score

    def __call__(self, t: mx.array, x: mx.array, cond: Any = None) -> tuple[mx.array, mx.array]:
        """Velocity and scaled score, each like x."""
        return conditioned(self.velocity, cond)(t, x), conditioned(self.score, cond)(t, x)


def score_flow_loss(path: BrownianPath) -> Callable[[Model, PathSample], mx.array]:
    """The loss of [SF]2M, a function `(model, sample) -> scalar`: the `regress` of a loss.

    `flow_matching_loss(path, regress=score_flow_loss(path))` trains a model on `path`. Squared
    errors of v, and of s times lambda = 2 gamma / sigma^2: as the score of x_t given its ends is
    -eps / gamma, the latter is |lambda s + eps|^2, and s stays bounded where gamma vanishes (Tong
    et al. 2024, arXiv 2307.03672). Raises ValueError for a path without noise; the loss, where the
    model returns other shapes than that of the points.
    """
    check_path(path)
    if not isinstance(path, BrownianPath):
        raise TypeError(f"path is {path!r}; a score needs a BrownianPath, such as Bridge(sigma=1)")
    _check_sigma(path.sigma)

    def regress(model: Model, sample: PathSample) -> mx.array:
        v, s = velocity_and_score(model, sample.t, sample.xt)
        scale = 2 / path.sigma**2 * path.noise(expand_time(sample.t, s))
        return mx.mean(mx.square(v - sample.ut)) + mx.mean(mx.square(scale * s + sample.eps))

    return regress


@dataclass(frozen=True)
class VelocityOf:
    """The field v(t, x) of a model, for `sampling.sample` and any other ODE.

    It takes the condition that the model takes, and can be guided.
    """

    model: Model

    def __post_init__(self):
        check_callable(self.model, "model", "model(t, x)")

    def __call__(self, t: mx.array, x: mx.array, cond: Any = None) -> mx.array:
        """Velocity, like x."""
        return velocity_and_score(conditioned(self.model, cond), t, as_batch(x, "x"))[0]


def under(field: Callable, cond: Any, method: Callable = conditioned, *weight: float) -> Callable:
    """The field v(t, x) of `field(t, x, cond)` under a condition; of a `VelocityOf` its score too.

    `method`: of `flowmlx.guidance`, with its weight.
    """
    if isinstance(field, VelocityOf):
        return VelocityOf(method(field.model, cond, *weight))
    return method(field, cond, *weight)


@in_eval_mode
def sample_bridge(
    model: Model,
    x: mx.array,
    *,
    sigma: float,
    key: mx.array,
    ts: Sequence[float] | np.ndarray = (0.0, 1.0),
    method: str = "euler_maruyama",
    step_size: float = 1 / 64,
) -> Solution:
    """Carry points along the process with noise, dx = (v + s) dt + sigma dW.

    `x` (batch, ...): points at ts[0]; with `ts` from 1 to 0 the process runs back from data to the
    source, with the drift v - s, and has the same marginals (Anderson 1982). `sigma`: that of the
    path that the model was trained on; another one needs another scale of the score. `key`,
    `method`, `step_size`: as in `solvers.sdeint`. Raises ValueError for a sigma that is not above
    0; else as sdeint does.
    """
    check_callable(model, "model", "model(t, x)")
    x, sigma, ts = as_batch(x, "x"), _check_sigma(sigma), as_numpy(ts, "ts", np.float64)
    way = 1.0 if ts.size and ts.flat[-1] > ts.flat[0] else -1.0

    def drift(t: mx.array, x: mx.array) -> mx.array:
        v, s = velocity_and_score(model, t, x)
        return v + way * s

    return sdeint(drift, lambda t, x: sigma, x, ts, key=key, method=method, step_size=step_size)


def velocity_and_score(model: Model, t: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
    """What the model returns, checked: two arrays like x."""
    pair = model(t, x)
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise TypeError(
            f"model(t, x) returned {describe(pair)}; expected a velocity and a score, (v, s), as "
            "TwoHeads and TwoNetworks make"
        )
    v, s = (check_returned(part, "model(t, x)", x.shape) for part in pair)
    return v, s


def _check_sigma(sigma: float) -> Any:
    expected = "a number above 0: a score needs a path with noise, such as Bridge(sigma=1.0)"
    return as_number(sigma, "sigma", expected, lambda s: 0 < s < math.inf)
