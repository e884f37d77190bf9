"""The names of TorchCFM on MLX arrays, for scripts that are ported from PyTorch.

A matcher is a path of `flowmlx.paths` and, where it says so, a plan of `flowmlx.couplings`, drawn
from the global generators: a plan from NumPy's, then times and then noise from MLX's, so that
`np.random.seed` and `mx.random.seed` reproduce a batch. What differs from TorchCFM, and why, is in
docs/porting.md. New code is shorter with paths, couplings and keys.

Throughout, `x0` (source) and `x1` (data) are (batch, ...), and `t` is (batch,) or, where nothing is
drawn, a number.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from flowmlx import metrics
from flowmlx.couplings import exact_ot, on_host, partial, squared_distances
from flowmlx.names import look_up
from flowmlx.nets.activations import selu
from flowmlx.paths import (
    AffinePath,
    Bridge,
    Linear,
    Target,
    Trigonometric,
    alike,
    expand_time,
    is_absent,
    path_time,
)
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

__all__ = [
    "MLP",
    "ConditionalFlowMatcher",
    "ExactOptimalTransportConditionalFlowMatcher",
    "OTPlanSampler",
    "SchrodingerBridgeConditionalFlowMatcher",
    "TargetConditionalFlowMatcher",
    "VariancePreservingConditionalFlowMatcher",
    "pad_t_like_x",
    "wasserstein",
]

Labels = mx.array | None

# Points that batches of different sizes are repeated to for an exact plan: up to half a second.
REPEATED = 2048


def pad_t_like_x(t: mx.array | float, x: mx.array) -> mx.array | float:
    """Give `t` (batch,) trailing axes of length 1 so that it broadcasts over `x`; numbers stay.

    Raises ValueError where `t` has neither one entry nor one per sample.
    """
    if isinstance(t, int | float):
        return t
    return expand_time(as_array(t, "t").reshape(-1), x)


class ConditionalFlowMatcher:
    """I-CFM, pairs as they come: N(t x1 + (1 - t) x0, sigma^2), `paths.Linear`.

    Tong et al. 2024, arXiv 2302.00482, Eq. 14-15. Raises ValueError where `sigma` is negative or
    not finite. A subclass may override any `compute_`, `sample_xt` or `sample_noise_like`.
    """

    path_type: type[AffinePath] = Linear
    ot_sampler: "OTPlanSampler | None" = None

    def __init__(self, sigma: float = 0.0):
        self.sigma = self.path_type(sigma).sigma  # refuses a bad one

    @property
    def path(self) -> AffinePath:
        """The path, with the sigma of now."""
        return self.path_type(self.sigma)

    def compute_mu_t(self, x0: mx.array, x1: mx.array, t: mx.array | float) -> mx.array:
        """Mean of x_t given its ends, like x1."""
        x0, x1 = alike(x0=x0, x1=x1)
        alpha, beta, _ = self.path.coefficients(mx.array(pad_t_like_x(t, x1)))
        return alpha * x1 if is_absent(beta) else alpha * x1 + beta * x0

    def compute_sigma_t(self, t: mx.array | float) -> mx.array | float:
        """Standard deviation of x_t given its ends: like `t`, or a number where constant."""
        return self.path.coefficients(as_array(t, "t"))[2]

    def sample_xt(
        self, x0: mx.array, x1: mx.array, t: mx.array | float, epsilon: mx.array
    ) -> mx.array:
        """x_t = mu_t + sigma_t epsilon, like x1."""
        x0, x1, epsilon = alike(x0=x0, x1=x1, epsilon=epsilon)
        mu_t, sigma_t = self.compute_mu_t(x0, x1, t), self.compute_sigma_t(t)
        return mu_t if is_absent(sigma_t) else mu_t + pad_t_like_x(sigma_t, x1) * epsilon

    def compute_conditional_flow(
        self, x0: mx.array, x1: mx.array, t: mx.array | float, xt: mx.array
    ) -> mx.array:
        """Conditional velocity at `xt`, like x1; not finite where sigma_t vanishes at `t` alone."""
        x0, x1, xt = alike(x0=x0, x1=x1, xt=xt)
        return self.path.velocity(mx.array(pad_t_like_x(t, x1)).reshape(-1), xt, x0, x1)

    def sample_noise_like(self, x: mx.array) -> mx.array:
        """Standard normal noise like `x`, from MLX's global generator."""
        x = as_array(x, "x")
        return mx.random.normal(x.shape, dtype=x.dtype)

    def compute_lambda(self, t: mx.array | float) -> mx.array | float:
        """Weight of the score loss, 2 sigma_t / sigma^2 (Tong et al. 2024, arXiv 2307.03672).

        Raises ValueError for sigma = 0, where there is no score to weigh.
        """
        if not self.sigma > 0:
            raise ValueError(f"sigma is {self.sigma}; the weight of a score needs a sigma above 0")
        return self.compute_sigma_t(t) * (2 / self.sigma**2)

    def sample_location_and_conditional_flow(
        self,
        x0: mx.array,
        x1: mx.array,
        t: mx.array | None = None,
        return_noise: bool = False,
    ) -> tuple:
        """Pair the batches, then draw (t, xt, ut), or (t, xt, ut, epsilon) with `return_noise`.

        `t` (batch,) is drawn from `path.interval` unless given. Raises ValueError where shapes do
        not match.
        """
        x0, x1, _, _ = self._pair(as_batch(x0, "x0"), as_batch(x1, "x1"), None, None)
        t, xt, ut, epsilon = self._draw(x0, x1, t)
        return (t, xt, ut, epsilon) if return_noise else (t, xt, ut)

    def guided_sample_location_and_conditional_flow(
        self,
        x0: mx.array,
        x1: mx.array,
        y0: Labels = None,
        y1: Labels = None,
        t: mx.array | None = None,
        return_noise: bool = False,
    ) -> tuple:
        """As without labels, but (t, xt, ut, y0, y1) or (t, xt, ut, y0, y1, epsilon).

        `y0`, `y1` (batch, ...) follow their points; None stays None.
        """
        x0, x1, y0, y1 = self._pair(as_batch(x0, "x0"), as_batch(x1, "x1"), y0, y1)
        t, xt, ut, epsilon = self._draw(x0, x1, t)
        return (t, xt, ut, y0, y1, epsilon) if return_noise else (t, xt, ut, y0, y1)

    def _pair(self, x0, x1, y0, y1) -> tuple:
        if self.ot_sampler is None:
            return x0, x1, _labels(y0, x0, "y0"), _labels(y1, x1, "y1")
        return self.ot_sampler.sample_plan_with_labels(x0, x1, y0, y1)

    def _draw(self, x0, x1, t) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        x0, x1 = alike(x0=x0, x1=x1)
        if t is None:
            t = mx.random.uniform(*self.path.interval, (x0.shape[0],), dtype=x0.dtype)
        else:
            t = path_time(t, x0)
        if t.size != x0.shape[0]:
            raise ValueError(
                f"t has shape {t.shape}; expected ({x0.shape[0]},), one time per sample of x0"
            )
        epsilon = self.sample_noise_like(x0)
        xt = self.sample_xt(x0, x1, t, epsilon)
        if type(self).compute_conditional_flow is ConditionalFlowMatcher.compute_conditional_flow:
            # From the noise: from xt it would lose its digits where sigma_t is small.
            ut = self.path.point(x0, x1, t.reshape(-1), epsilon).ut
        else:
            ut = self.compute_conditional_flow(x0, x1, t, xt)
        return t, xt, ut, epsilon


class TargetConditionalFlowMatcher(ConditionalFlowMatcher):
    """FM from noise: N(t x1, (1 - (1 - sigma) t)^2), `paths.Target`; x0 gives only a shape.

    Lipman et al. 2023, Eq. 20-23.
    """

    path_type = Target


class VariancePreservingConditionalFlowMatcher(ConditionalFlowMatcher):
    """VP-CFM: N(sin(pi t/2) x1 + cos(pi t/2) x0, sigma^2), `paths.Trigonometric`.

    Albergo & Vanden-Eijnden 2023, Eq. 5 and 21.
    """

    path_type = Trigonometric


class ExactOptimalTransportConditionalFlowMatcher(ConditionalFlowMatcher):
    """OT-CFM: ConditionalFlowMatcher on pairs of the exact plan between the batches.

    Tong et al. 2024, arXiv 2302.00482. The plan is made on the host: see `OTPlanSampler.get_map`.
    """

    def __init__(self, sigma: float = 0.0):
        super().__init__(sigma)
        self.ot_sampler = OTPlanSampler("exact")


class SchrodingerBridgeConditionalFlowMatcher(ConditionalFlowMatcher):
    """SB-CFM: N(t x1 + (1 - t) x0, sigma^2 t (1 - t)) on pairs of a plan, `paths.Bridge`.

    `ot_method`: as in OTPlanSampler, with reg = 2 sigma^2; the entropic plan of "sinkhorn" is the
    one of the Schroedinger bridge (Tong et al. 2024, arXiv 2302.00482, Eq. 20-21). The velocity is
    infinite at t = 0 and t = 1, so times are drawn from (0.001, 0.999). Raises ValueError unless
    sigma > 0, for an unknown method and for a time at an end; warns where sigma is below 1e-3.
    """

    path_type = Bridge

    def __init__(self, sigma: float = 1.0, ot_method: str = "exact"):
        expected = "a strictly positive number, such as 1.0"
        sigma = check_number(sigma, "sigma", expected, lambda s: 0 < s < math.inf)
        if sigma < 1e-3:
            warnings.warn(
                f"sigma is {sigma}: with so small a value the bridge is hardly random; OT-CFM is "
                "the limit of sigma 0, and takes less time",
                stacklevel=2,
            )
        super().__init__(sigma)
        self.ot_method = ot_method
        self.ot_sampler = OTPlanSampler(ot_method, reg=2 * sigma**2)

    def _draw(self, x0, x1, t) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        t = None if t is None else path_time(t, x0)
        if t is not None and not ((t > 0) & (t < 1)).all().item():
            low, high = self.path.interval
            raise ValueError(
                "t holds 0, 1 or a time outside, where the velocity of a bridge is not finite; "
                f"write mx.clip(t, {low}, {high})"
            )
        return super()._draw(x0, x1, t)


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

        "partial" repeats the points of batches of different sizes to one size; where that takes
        more than 2048, those of the smaller one as evenly as can be, by NumPy's generator. Raises
        ValueError inside a compiled function, where a point is not finite and for a `reg`, `reg_m`
        or `mass` out of range, NotConverged where an entropic plan misses its marginals.
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
        y0, y1 = _labels(y0, x0, "y0"), _labels(y1, x1, "y1")
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


class MLP(nn.Module):
    """Three hidden layers of `w` SELU units, on x or, if `time_varying`, on x and t side by side.

    Call with (batch, dim) or (batch, dim + 1), t last. Parameters have the names and shapes that
    they have in PyTorch (net.0.weight, ...); initial values come from MLX's global generator.
    """

    def __init__(
        self, dim: int, out_dim: int | None = None, w: int = 64, time_varying: bool = False
    ):
        super().__init__()
        self.time_varying = time_varying
        self.net = [
            nn.Linear(dim + bool(time_varying), w),
            selu,
            nn.Linear(w, w),
            selu,
            nn.Linear(w, w),
            selu,
            nn.Linear(w, dim if out_dim is None else out_dim),
        ]

    def __call__(self, x: mx.array) -> mx.array:
        """Output (batch, out_dim)."""
        x, size = as_array(x, "x"), self.net[0].weight.shape[1]
        if x.shape[-1:] != (size,):
            raise ValueError(f"x has shape {x.shape}; expected (batch, {size})")
        for layer in self.net:
            x = layer(x)
        return x


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


def _labels(y: Any, x: mx.array, name: str) -> Labels:
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
