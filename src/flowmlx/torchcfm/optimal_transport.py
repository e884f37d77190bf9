"""Transport plans between two batches, pairs drawn from them, and their distance."""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from flowmlx import metrics
from flowmlx.couplings import exact_ot, on_host, partial
from flowmlx.names import look_up
from flowmlx.solvers.arrays import (
    as_array,
    as_batch,
    as_real,
    as_rows,
    check_count,
    check_number,
)
from flowmlx.transport import plans
from flowmlx.transport.assignment import transport
from flowmlx.transport.costs import squared_distances

Labels = mx.array | None

# Points that batches of different sizes are repeated to for an exact plan: up to half a second.
REPEATED = 2048


class OTPlanSampler:
    """Optimal transport plans between two batches, cost squared distance, and pairs from them.

    `method`: a name in PLANS. `reg`: strength of the entropy in "sinkhorn" and "unbalanced", in the
    units of the cost, and `reg_m` of the penalty on the marginals in "unbalanced".
    `normalize_cost`: divide the cost by its maximum. `mass`: the share that "partial" moves.
    `num_threads` and `warn` are accepted and not used: plans take one thread, and one that fails
    raises. Raises ValueError for an unknown method.
    """

    def __init__(
        self,
        method: str,
        reg: float = 0.05,
        reg_m: float = 1.0,
        normalize_cost: bool = False,
        num_threads: int | str = 1,
        warn: bool = True,
        *,
        mass: float = 0.9,
    ):
        look_up(PLANS, method, "method")
        reg, reg_m, mass = (
            check_number(value, name, "a number, such as 0.05", lambda _: True)
            for name, value in (("reg", reg), ("reg_m", reg_m), ("mass", mass))
        )
        self.method, self.reg, self.reg_m, self.mass = method, reg, reg_m, mass
        self.normalize_cost, self.num_threads, self.warn = normalize_cost, num_threads, warn

    def get_map(self, x0: mx.array, x1: mx.array) -> np.ndarray:
        """The plan (n, m) between `x0` (n, ...) and `x1` (m, ...), NumPy float64 on the host.

        "partial" repeats the points of batches of different sizes to a common size. Where that is
        above 2048, only the points of the smaller batch are repeated, as evenly as can be, and
        NumPy's generator chooses those that are repeated once more. Raises ValueError inside a
        compiled function, where a point is not finite and for a `reg`, `reg_m` or `mass` out of
        range, NotConverged where an entropic plan misses its marginals.
        """
        return PLANS[self.method](self, *_points(x0, x1))

    def sample_map(
        self, pi: np.ndarray, batch_size: int, replace: bool = False
    ) -> tuple[mx.array, mx.array]:
        """Indices (i, j) of `batch_size` pairs from the plan `pi` (n, m), by NumPy's generator.

        `replace=True` draws each pair from pi, independent of the others. `replace=False` uses the
        rows as evenly as their mass allows, and draws for each a column from its row: where all
        rows have the same mass, n pairs are every x0 once, and a permutation is itself. In both
        ways a pair is as frequent as pi says. Raises ValueError for a plan without mass.
        """
        batch_size = check_count(batch_size, "batch_size", least=0)
        pi = as_rows(pi, "pi", np.float64)
        _check_mass(pi)
        if replace:
            p = pi.ravel() / pi.sum()
            i, j = np.divmod(np.random.choice(pi.size, batch_size, p=p), pi.shape[1])  # noqa: NPY002
        else:
            levels = np.cumsum(pi.sum(1))
            places = (np.random.random() + np.arange(batch_size)) / batch_size  # noqa: NPY002
            places = np.minimum(places, np.nextafter(1, 0))  # where the sum has rounded up
            i = np.searchsorted(levels / levels[-1], places, side="right")
            j = _draw_columns(pi[i])
        return mx.array(i, mx.int32), mx.array(j, mx.int32)

    def sample_plan(
        self, x0: mx.array, x1: mx.array, replace: bool = False
    ) -> tuple[mx.array, mx.array]:
        """As many pairs (x0[i], x1[j]) as x0 has samples, drawn by `sample_map`."""
        return self.sample_plan_with_labels(x0, x1, replace=replace)[:2]

    def sample_plan_with_labels(
        self,
        x0: mx.array,
        x1: mx.array,
        y0: Labels = None,
        y1: Labels = None,
        replace: bool = False,
    ) -> tuple[mx.array, mx.array, Labels, Labels]:
        """As `sample_plan`, and the labels (batch, ...) of both; None stays None."""
        x0, x1 = as_batch(x0, "x0"), as_batch(x1, "x1")
        y0, y1 = as_labels(y0, x0, "y0"), as_labels(y1, x1, "y1")
        i, j = self.sample_map(self.get_map(x0, x1), x0.shape[0], replace)
        return x0[i], x1[j], None if y0 is None else y0[i], None if y1 is None else y1[j]

    def sample_plan_with_scipy(self, x0: mx.array, x1: mx.array) -> tuple[mx.array, mx.array]:
        """Pairs of the exact plan whatever the method, x0 in its order; nothing is drawn.

        Raises ValueError where the batches differ in size.
        """
        x0, x1 = as_batch(x0, "x0"), as_batch(x1, "x1")
        if x0.shape[0] != x1.shape[0]:
            raise ValueError(
                f"x0 has {x0.shape[0]} samples and x1 {x1.shape[0]}; this plan pairs them one to "
                "one: write sample_plan for batches of different sizes"
            )
        i, j = exact_ot.pair(*_points(x0, x1), rng=None)
        return x0[mx.array(i)], x1[mx.array(j)]

    def sample_trajectory(self, X: mx.array) -> mx.array:
        """Join populations `X` (batch, times, ...) to trajectories of the same shape.

        Each point goes on to one of the next population, drawn from its row of the plan between
        them. Raises ValueError where a point's row has no mass.
        """
        X = as_batch(X, "X")
        if X.ndim < 2 or 0 in X.shape[:2]:
            raise ValueError(f"X has shape {X.shape}; expected (batch, times, ...), none empty")
        i, points = np.arange(X.shape[0]), [X[:, 0]]
        for k in range(1, X.shape[1]):
            i = _draw_columns(self.get_map(X[:, k - 1], X[:, k])[i])
            points.append(X[:, k][mx.array(i, mx.int32)])
        return mx.stack(points, axis=1)


def wasserstein(
    x0: mx.array,
    x1: mx.array,
    method: str | None = None,
    reg: float = 0.05,
    power: int = 2,
) -> float:
    """Wasserstein distance W_1 or W_2 (`power`) between two samples, flattened to rows.

    `method`: "exact" (also None) or "sinkhorn", the transport cost of the entropic plan of strength
    `reg`. Raises ValueError for another method or power.
    """
    check_number(power, "power", "1 or 2", lambda power: power in (1, 2))
    reg = check_number(reg, "reg", "a number, such as 0.05")
    x, y = (x.reshape(len(x), -1) for x in _points(x0, x1))
    return look_up(DISTANCES, method or "exact", "method")(x, y, power, reg)


def _points(x0: mx.array, x1: mx.array) -> list[np.ndarray]:
    """Both batches on the host, float32, or an error that says how to pair outside of compile."""
    batches = [as_array(x, name) for x, name in ((x0, "x0"), (x1, "x1"))]
    try:
        mx.eval(batches)
    except ValueError as error:
        raise ValueError(
            "a plan is computed on the host and cannot be part of a compiled function; pair the "
            "batch before it, x0, x1 = matcher.ot_sampler.sample_plan(x0, x1), and use a "
            "ConditionalFlowMatcher inside"
        ) from error
    return [x.astype(np.float32) for x in on_host(*batches)]


def as_labels(y: Any, x: mx.array, name: str) -> Labels:
    """Labels (batch, ...) of the points x, of any dtype; None stays None."""
    if y is None:
        return None
    labels = as_real(y, name)
    if labels.shape[:1] != x.shape[:1]:
        raise ValueError(f"{name} has shape {labels.shape}; expected ({len(x)}, ...), as x")
    return labels


def _check_mass(pi: np.ndarray) -> None:
    total = pi.sum()
    if not (math.isfinite(total) and total > 0):
        raise ValueError(f"the plan's sum is {total}; there are no pairs to draw from it")


def _draw_columns(rows: np.ndarray) -> np.ndarray:
    """A column (k,) for each row of (k, m), as probable as its share of the row."""
    levels = np.cumsum(rows, axis=1)
    empty = np.flatnonzero(~(levels[:, -1] > 0))
    if len(empty):
        raise ValueError(f"{len(empty)} of {len(rows)} points have no mass in the plan to follow")
    places = np.random.random(len(rows))[:, None]  # noqa: NPY002
    return (levels / levels[:, -1:] <= places).sum(1)


def _exact_plan(x0: np.ndarray, x1: np.ndarray) -> np.ndarray:
    i, j, mass = transport(squared_distances(x0, x1))
    plan = np.zeros((len(x0), len(x1)))
    plan[i, j] = mass
    return plan


def _partial_plan(sampler: OTPlanSampler, x0: np.ndarray, x1: np.ndarray) -> np.ndarray:
    n, m = len(x0), len(x1)
    common = math.lcm(n, m)
    even = n == m or common <= REPEATED
    copies = (common // n, common // m) if even else (1, 1)
    rng = None if even else np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002
    repeated = x0.repeat(copies[0], 0), x1.repeat(copies[1], 0)
    i, j = partial(sampler.mass).pair(*repeated, rng=rng)
    plan = np.zeros((n, m))
    np.add.at(plan, (i // copies[0], j // copies[1]), 1.0)
    return plan / max(n * copies[0], m * copies[1])


def _entropic_plan(
    sampler: OTPlanSampler, x0: np.ndarray, x1: np.ndarray, reg_m: float
) -> np.ndarray:
    cost = squared_distances(x0, x1)
    if sampler.normalize_cost:
        cost /= cost.max() or 1.0
    return _plan_of_costs(cost, sampler.reg, reg_m)


def _entropic_distance(x: np.ndarray, y: np.ndarray, power: int, reg: float) -> float:
    cost = squared_distances(x, y) ** (power / 2)
    return float((_plan_of_costs(cost, reg, math.inf) * cost).sum() ** (1 / power))


def _plan_of_costs(cost: np.ndarray, reg: float, reg_m: float) -> np.ndarray:
    if not reg > 0:
        raise ValueError(f"reg is {reg}; expected a number above 0, such as 0.05")
    if not reg_m > 0:
        raise ValueError(f"reg_m is {reg_m}; expected a number above 0, such as 1.0")
    return plans.plan(cost, reg, reg_m=reg_m)


# method -> function (sampler, x0, x1) to the plan.
PLANS: dict[str, Callable[[OTPlanSampler, np.ndarray, np.ndarray], np.ndarray]] = {
    "exact": lambda sampler, x0, x1: _exact_plan(x0, x1),
    "sinkhorn": lambda sampler, x0, x1: _entropic_plan(sampler, x0, x1, math.inf),
    "unbalanced": lambda sampler, x0, x1: _entropic_plan(sampler, x0, x1, sampler.reg_m),
    "partial": _partial_plan,
}


# method -> function (x, y, power, reg) to the distance.
DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray, int, float], float]] = {
    "exact": lambda x, y, power, reg: metrics.wasserstein(x, y, p=power),
    "sinkhorn": _entropic_distance,
}
