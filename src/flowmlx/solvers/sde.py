"""sdeint: stochastic differential equations with additive or diagonal noise."""

import math
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from flowmlx.solvers.arrays import as_array, check_callable, check_returned
from flowmlx.solvers.brownian import BrownianMotion, Increment
from flowmlx.solvers.failures import SolverError, Status
from flowmlx.solvers.inputs import Field, check_max_steps, check_step_size, check_times, leaf_names
from flowmlx.solvers.solution import Solution, Stats
from flowmlx.solvers.stepper import Slope
from flowmlx.solvers.tracing import begin, count_finite, is_traced, read

# A step (drift, diffusion, t, t_next, x, noise) -> x at t_next; noise.dt = |t_next - t|.
NoisyStep = Callable[[Slope, Slope, float, float, mx.array, Increment], mx.array]


class SDEMethod(NamedTuple):
    """A method: its `step`, and what it solves.

    `calculus`: "ito", "stratonovich", or "both" where the noise is `additive`, that is, the
    diffusion does not depend on x. `order`: strong order of convergence for such equations.
    """

    step: NoisyStep
    calculus: str
    order: float
    additive: bool = False


def sdeint(
    drift: Callable[..., Any],
    diffusion: Callable[..., Any],
    x0: Any,
    ts: Any,
    *,
    key: mx.array,
    method: str = "euler_maruyama",
    step_size: float,
    max_steps: int = 100_000,
    throw: bool = True,
    args: tuple = (),
) -> Solution:
    """Solve dx = drift(t, x, *args) dt + diffusion(t, x, *args) dW and return the states at `ts`.

    Every number of the state has its own Brownian motion: the noise is diagonal. `drift`: as the
    field of `odeint`. `diffusion`: returns a tree like x0 whose leaves broadcast to those of x0, or
    one number or array for all. Its entry i may depend on entry i of x only. `x0`, `ts`: as in
    `odeint`, in both directions of time. With decreasing times, dW is Brownian motion in decreasing
    time, as in the reverse-time equation of Song et al. 2021 (arXiv 2011.13456, Eq. 6). `method`: a
    name in SDE_METHODS. It determines whether the equation is an Ito or a Stratonovich equation,
    and whether the diffusion may depend on x:

        euler_maruyama     Ito; strong order 1/2, 1 for additive noise; weak order 1
        milstein           Ito; strong order 1, without derivatives
        stochastic_heun    Stratonovich; strong order 1
        sra1               additive noise, where Ito and Stratonovich agree; strong order 3/2

    An Ito equation has the Stratonovich drift f - g g' / 2, with g' the derivative of each entry
    of the diffusion g in its own entry of x.

    Steps between two output times are equal and no longer than `step_size`; there are at most
    `max_steps`. `key` determines the noise: for an array x0 it is
    `BrownianMotion(x0.shape, abs(ts[-1] - ts[0]), key=key)`, so that solves with other step sizes
    or methods follow the same Brownian path. Drift and diffusion are not evaluated outside the
    interval.

    Returns Solution(ts, xs, stats, status); nfe counts evaluations of the drift. Raises ValueError
    or TypeError for bad arguments, and SolverError if the state becomes NaN or infinite. With
    `throw=False` it returns the states before that instead, with the status "non_finite".
    """
    if not isinstance(method, str) or method not in SDE_METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(SDE_METHODS)}")
    chosen = SDE_METHODS[method]
    f = Field(drift, x0, args, "drift")
    check_callable(diffusion, "diffusion", "such as diffusion(t, x)")
    g = Field(lambda t, x, *args: _spread(diffusion(t, x, *args), x), x0, args, "diffusion")
    times = check_times(ts, f.time_dtype)
    _check_no_gradient(ts)
    step_size, max_steps = check_step_size(step_size), check_max_steps(max_steps)
    if chosen.additive:
        _check_additive(g, times[0], method)
    grid, outputs = _steps(times, step_size, max_steps)
    sizes, span = np.abs(np.diff(grid)), abs(times[-1] - times[0])
    motion = BrownianMotion(f.x0.shape, span, key=key, dtype=f.x0.dtype, shortest=sizes.min())
    x, states = f.x0, [f.x0]
    for n, (t, t_next) in enumerate(pairwise(grid), start=1):
        noise = motion(abs(t - times[0]), abs(t_next - times[0]))
        x = chosen.step(f, g, t, t_next, x, noise)
        begin(x)
        if n in outputs:
            states.append(x)
    xs = mx.stack(states)
    reached = count_finite(xs)
    if reached < len(times) and throw:
        raise _not_finite(method, times, reached, float(sizes.max()))
    return Solution(
        f.time(times[:reached]),
        f.tree(xs[:reached]),
        Stats(f.nfe, len(sizes), 0, float(sizes.min()), float(sizes.max())),
        Status.SUCCESS if reached == len(times) else Status.NON_FINITE,
    )


def euler_maruyama(f, g, t, t_next, x, noise):
    """x + f h + g W (Maruyama 1955; Kloeden & Platen 1992, section 10.2)."""
    return x + (t_next - t) * f(t, x) + g(t, x) * noise.w


def milstein(f, g, t, t_next, x, noise):
    """Milstein's method with a difference for the derivative of g (Kloeden & Platen 1992, 11.1)."""
    root = math.sqrt(noise.dt)
    slope, scale = f(t, x), g(t, x)
    ahead = x + (t_next - t) * slope
    change = g(t, ahead + root * scale) - scale
    return ahead + scale * noise.w + change * (noise.w**2 - noise.dt) / (2 * root)


def stochastic_heun(f, g, t, t_next, x, noise):
    """Trapezoidal rule after a step of Euler, in drift and noise (Ruemelin 1982)."""
    h = t_next - t
    first = h * f(t, x) + g(t, x) * noise.w
    ahead = x + first
    return x + (first + h * f(t_next, ahead) + g(t_next, ahead) * noise.w) / 2


def sra1(f, g, t, t_next, x, noise):
    """SRA1 for additive noise (Roessler 2010, SIAM J. Numer. Anal. 48, section 6)."""
    h = t_next - t
    # The mean of W over the step since its start, the paper's I_(1,0) / h.
    mean = noise.w / 2 + noise.h
    first, last = g(t, x), g(t_next, x)
    k1 = f(t, x)
    k2 = f(t + 0.75 * h, x + 0.75 * h * k1 + 1.5 * last * mean)
    return x + h * (k1 + 2 * k2) / 3 + first * mean + last * (noise.w - mean)


def _spread(g: Any, x: Any) -> Any:
    """The value of the diffusion, in the shapes and dtypes of x."""

    def full(leaf: mx.array, g: Any) -> mx.array:
        g = as_array(g, "the value of diffusion(t, x)").astype(leaf.dtype)
        try:
            return mx.broadcast_to(g, leaf.shape)
        except ValueError:
            raise ValueError(
                f"diffusion(t, x) returned shape {g.shape}; expected one that broadcasts to "
                f"{leaf.shape}, the shape of x0: the noise is diagonal"
            ) from None

    if not any(isinstance(leaf, mx.array | int | float) for _, leaf in tree_flatten(g)):
        check_returned(g, "diffusion(t, x)")
    if not isinstance(g, dict | list | tuple):
        return tree_map(lambda leaf: full(leaf, g), x)
    if leaf_names(g) != leaf_names(x):
        raise ValueError(
            f"diffusion(t, x) returned a tree with the leaves {leaf_names(g)}; expected those of "
            f"x0, {leaf_names(x)}, or one number or array for all"
        )
    return tree_map(full, x, g)


def _check_additive(g: Field, t: float, method: str) -> None:
    if not read(mx.array_equal(g(t, g.x0), g(t, g.x0 + 1))):
        raise ValueError(
            f"method is {method!r}, for additive noise, but diffusion(t, x) depends on x; use "
            '"milstein" (Ito) or "stochastic_heun" (Stratonovich)'
        )


def _check_no_gradient(ts: Any) -> None:
    """Refuse times that are differentiated."""
    if isinstance(ts, mx.array) and is_traced(ts):
        raise ValueError(
            "sdeint has no gradient in its times, as Brownian motion has no derivative, and ts is "
            "an array that is differentiated; expected numbers, such as [0.0, 1.0]"
        )


def _steps(times: list[float], step_size: float, max_steps: int) -> tuple[list[float], set[int]]:
    """Ends of equal steps of at most `step_size` from each time to the next.

    And the numbers of those that end at the times. Raises ValueError for too many.
    """
    # 1.1 / 0.1 is 11.000000000000002: eleven steps, not twelve.
    counts = [max(1, math.ceil(abs(b - a) / step_size * (1 - 1e-12))) for a, b in pairwise(times)]
    if sum(counts) > max_steps:
        raise ValueError(
            f"step_size={step_size!r} makes {sum(counts)} steps from t={times[0]!r} to "
            f"t={times[-1]!r}; allow them with max_steps={sum(counts)}, or take longer ones"
        )
    between = zip(pairwise(times), counts, strict=True)
    inner = [t + k * (t_next - t) / n for (t, t_next), n in between for k in range(n)]
    return inner + times[-1:], set(accumulate(counts))


def _not_finite(method: str, times: list[float], reached: int, dt: float) -> SolverError:
    t = times[max(reached - 1, 0)]
    return SolverError(
        Status.NON_FINITE,
        t,
        math.copysign(dt, times[-1] - times[0]),
        f"{method} met a state that is not finite (NaN or overflow) after t={t:.6g} with steps of "
        f"at most {dt:.3g}. The solution blows up, the steps are too long to be stable, or drift "
        f"or diffusion return NaN. Take shorter steps: sdeint(..., step_size={dt / 4:.3g})",
    )


SDE_METHODS: dict[str, SDEMethod] = {
    "euler_maruyama": SDEMethod(euler_maruyama, "ito", 0.5),
    "milstein": SDEMethod(milstein, "ito", 1.0),
    "stochastic_heun": SDEMethod(stochastic_heun, "stratonovich", 1.0),
    "sra1": SDEMethod(sra1, "both", 1.5, additive=True),
}
