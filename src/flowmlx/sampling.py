"""Sampling: carry source points along a trained field."""

import math
from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import numpy as np

from flowmlx.conditions import conditioned
from flowmlx.conversions import schedule
from flowmlx.fields import in_eval_mode
from flowmlx.names import look_up
from flowmlx.paths import AffinePath
from flowmlx.solvers import METHODS, Coefficients, Exponential, Solution, Stepper, odeint
from flowmlx.solvers.arrays import (
    as_array,
    as_batch,
    as_number,
    as_numpy,
    as_real,
    check_callable,
    check_count,
    check_returned,
)
from flowmlx.solvers.inputs import check_times
from flowmlx.solvers.sde import sdeint

# Rows of the first block that is solved together, and of the largest.
LEAST_BLOCK, MOST_BLOCK = 1024, 4096


@in_eval_mode
def sample(
    field,
    x0: mx.array,
    *,
    ts: Sequence[float] | np.ndarray = (0.0, 1.0),
    method: str | Stepper = "dopri5",
    path: AffinePath | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    step_size: float | None = None,
    grid: Sequence[float] | np.ndarray | None = None,
) -> Solution:
    """Move source points `x0` (batch, ...) from t = 0 to the data at t = 1 along `field(t, x)`.

    The samples are `xs[-1]` of the returned `Solution`; `xs[k]` is the state at `ts[k]`. `method`:
    a name in SAMPLERS, or a `solvers.Stepper`. Adaptive methods keep the local error below
    `atol + rtol |x|`. The others take steps of `step_size`, or between the times of `grid`, such as
    `solvers.grids.sine(16)`; without both, one step between each two times of `ts`. The methods in
    PATH_METHODS need the `path` that the field was trained on. It must have no noise other than x0
    (Linear, Trigonometric and so on with sigma = 0, or Target). Networks in the field are in eval
    mode while this runs (see `flowmlx.fields`).

    Raises ValueError for an unknown method, and for a path that is missing or has noise in addition
    to x0; otherwise as `solvers.odeint`.
    """
    if not isinstance(method, Stepper):
        look_up(SAMPLERS, method, "method")
        method = PATH_METHODS[method](path) if method in PATH_METHODS else method
    x0 = as_batch(x0, "x0")
    return odeint(
        field,
        x0,
        ts,
        method=method,
        rtol=rtol,
        atol=atol,
        step_size=step_size,
        grid=grid,
    )


def row_blocks(n: int) -> Iterator[tuple[int, int]]:
    """Where blocks of rows start, and their sizes, so that together they hold the first `n` rows.

    They are the same for every n, and the last may reach beyond. Rows that are drawn and solved by
    whole blocks do not depend on how many there are, nor on how they are batched otherwise, to the
    last bit: a solver that chooses its steps chooses them for a block, and a matrix product may
    round a row in another way among another number of rows. Sizes double up to 4,096, so that less
    than half of the work is for rows that nobody asked for; larger ones save no time.
    """
    start = 0
    while start < n:
        size = min(max(start, LEAST_BLOCK), MOST_BLOCK)
        yield start, size
        start += size


@in_eval_mode
def reflow_pairs(
    field: Callable[..., mx.array],
    x0: mx.array,
    cond: mx.array | None = None,
    *,
    batch_size: int = 10_000,
    solve: Callable[..., Solution] = sample,
) -> tuple[np.ndarray, np.ndarray]:
    """Source points and where a trained `field` carries them, for a second model to be trained on.

    Trained on these pairs along the linear path, it has straighter flow lines between the same
    distributions, and so needs fewer evaluations (reflow: Liu et al. 2023, arXiv 2209.03003).
    `x0` (n, ...): many, some ten thousand or more, as the second model sees no others;
    `cond` (n, ...): a condition for each, which the field is told; None for none.
    `batch_size`: how many are carried at a time. A solver that chooses its steps chooses them for
    these, so a pair depends on the others, up to the tolerance; with fixed steps up to rounding.
    `solve`: a function (field, x0), such as `sample` with options of your own: the pairs are as
    good as its solver. Returns two arrays for `data.streams.shuffled`, whose stream gives the
    batches of `fit`.
    """
    batch_size, x0 = check_count(batch_size, "batch_size"), as_batch(x0, "x0")
    check_callable(solve, "solve", "solve(field, x0)")
    if cond is not None:
        cond = as_real(cond, "cond")
        if cond.shape[:1] != x0.shape[:1]:
            raise ValueError(f"cond has shape {cond.shape}; expected ({len(x0)}, ...), as x0 has")
    carried = []
    for k in range(0, max(len(x0), 1), batch_size):  # of no points one part, which is empty
        part = slice(k, k + batch_size)
        told = conditioned(field, None if cond is None else cond[part])
        carried.append(as_numpy(solve(told, x0[part]).xs[-1]))
    return as_numpy(x0).copy(), np.concatenate(carried)


def dpmpp_2m(path: AffinePath | None) -> Exponential:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095) for a `path` with one noise."""
    return Exponential(_coefficients(path, "dpmpp_2m"))


def unipc_2(path: AffinePath | None) -> Exponential:
    """UniPC of order 2 (Zhao et al. 2023, arXiv 2302.04867) for a `path` with one noise."""
    return Exponential(_coefficients(path, "unipc_2"), corrector=True)


def _coefficients(path: AffinePath | None, method: str) -> Callable[[float], Coefficients]:
    if path is None:
        raise ValueError(
            f"method {method!r} needs the path that the field was trained on; write "
            f'sample(field, x0, method="{method}", path=Linear()), or take method="dopri5"'
        )

    def at(t: float) -> Coefficients:
        with mx.stream(mx.cpu):  # float64 exists on the CPU only
            numbers = schedule(path, mx.array(t, dtype=mx.float64))
            return Coefficients(*(float(number) for number in numbers))

    at(0.5)  # refuses a path that has no such coefficients
    return at


@in_eval_mode
def sample_sde(
    field: Callable[[mx.array, mx.array], mx.array],
    x0: mx.array,
    *,
    key: mx.array,
    noise: float | Callable[[mx.array], mx.array] = 1.0,
    score: Callable[[mx.array, mx.array], mx.array] | None = None,
    ts: Sequence[float] | np.ndarray = (0.0, 1.0),
    method: str = "sra1",
    step_size: float = 1 / 64,
) -> Solution:
    """Carry `x0` (batch, ...) from t = 0 to 1 by dx = (v + g^2 score / 2) dt + g dW.

    At every t the points are distributed as those of `sample` are, whatever g (Song et al. 2021,
    arXiv 2011.13456, section 4.3; Ma et al. 2024, arXiv 2401.08740, Eq. 6), but noise added on the
    way forgets errors made before. g(t)^2 = noise(t) (1 - t), so g vanishes at the data; `noise`: a
    number >= 0 or a function of the scalar t, 0 for the flow itself.

    `score(t, x)`: gradient of the log-density at t. None derives it from the field v as
    (t v - x) / (1 - t), which holds for the linear path without noise of its own (sigma = 0), a
    standard normal source and independent coupling, and cancels the 1 - t of g^2: nothing is
    divided by zero. For any other g use `solvers.sde.sdeint`.

    `key`, `method`, `step_size`: as in `sdeint`; powers of two are the cheapest numbers of steps.
    Raises ValueError where `ts` does not increase within [0, 1] or `noise` is negative; else as
    sdeint does.
    """
    check_callable(field, "field", "field(t, x)")
    x0, times = as_batch(x0, "x0"), check_times(ts, mx.float32)
    if not 0 <= times[0] < times[-1] <= 1:
        raise ValueError(
            f"ts runs from {times[0]} to {times[-1]}; expected increasing times in [0, 1]"
        )
    if not callable(noise):
        expected = "a number >= 0 or a function of t"
        noise = as_number(noise, "noise", expected, lambda g: 0 <= g < math.inf)

    def strength(t: mx.array) -> mx.array | float:
        return as_array(noise(t), "the value of noise(t)") if callable(noise) else noise

    def drift(t: mx.array, x: mx.array) -> mx.array:
        v = check_returned(field(t, x), "field(t, x)", x.shape)
        if score is None:
            scaled_score = t * v - x
        else:
            scaled_score = (1 - t) * check_returned(score(t, x), "score(t, x)", x.shape)
        return (v + strength(t) / 2 * scaled_score).astype(x.dtype)

    def diffusion(t: mx.array, x: mx.array) -> mx.array:
        return mx.sqrt(strength(t) * (1 - t))

    return sdeint(drift, diffusion, x0, ts, key=key, method=method, step_size=step_size)


# Solvers that know the path, and all solvers.
PATH_METHODS: dict[str, Callable[[AffinePath | None], Exponential]] = {
    "dpmpp_2m": dpmpp_2m,
    "unipc_2": unipc_2,
}
SAMPLERS = {**METHODS, **PATH_METHODS}
