"""Couplings: which source point meets which data point.

A coupling is a function `(x0, x1, *, key) -> (i, j)`, two index arrays: pair k joins x0[i[k]] and
x1[j[k]]. Indices instead of points let labels and other columns follow by gathering. Between n and
m points there are max(n, m) pairs (`partial` makes fewer).

Transport plans, for which a cost is a squared Euclidean distance, are computed by NumPy and SciPy
on the host. Such a coupling is a `HostCoupling`, and `training.paired_batches` runs it ahead of the
training step. It refuses points that are not finite with a ValueError.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from flowmlx.keys import generator
from flowmlx.solvers.arrays import as_points, as_rows, check_count, check_number
from flowmlx.transport import entropic, plans
from flowmlx.transport.assignment import assign
from flowmlx.transport.products import products

Coupling = Callable[..., tuple[mx.array, mx.array]]
Points = mx.array | np.ndarray
Pairs = tuple[np.ndarray, np.ndarray]

# Columns up to which distances are computed without a matrix product: as fast, on one thread, and
# nothing cancels.
FEW_COLUMNS = 16
# Part of x^2 + y^2 below which a distance from x^2 + y^2 - 2xy has lost digits that count.
CANCELLED = 1e-3
# Mean cost in units of a typical one from which a few points make all of it.
FAR = 1e3
# Part of the largest cost below which float32 does not resolve a regularisation.
RESOLVED = 1e-6


@dataclass(frozen=True)
class HostCoupling:
    """A coupling computed on the host.

    `pair(x0, x1, rng=...)` takes arrays (n, ...) and (m, ...) and a generator (None: no key was
    given), all of NumPy, and returns two index arrays; it may run in any thread. `conditional`: it
    takes the conditions of x1, (m, ...), as a third array. `pointwise`: pair k is of x0[k], and
    depends on no other point of x0, so that it does not matter how many are paired at once.
    """

    pair: Callable[..., Pairs]
    conditional: bool = False
    pointwise: bool = False

    def __call__(self, *points: Points, key: mx.array | None = None) -> tuple[mx.array, mx.array]:
        """Pair x0 and x1, and the conditions of x1 where `conditional`."""
        rng = None if key is None else generator(key)
        i, j = self.pair(*on_host(*points), rng=rng)
        return mx.array(i), mx.array(j)


def on_host(*points: Points) -> list[np.ndarray]:
    """x0, x1 and, if there are some, the conditions of x1 as a `HostCoupling` takes them.

    Raises ValueError where one has no rows, or the samples of x0 and x1 have different shapes.
    """
    names = ("x0", "x1", "condition", *("what follows x1",) * len(points))
    arrays = [as_rows(x, name) for x, name in zip(points, names, strict=False)]
    if len(arrays) > 1 and arrays[0].shape[1:] != arrays[1].shape[1:]:
        raise ValueError(
            f"x0 has samples of shape {arrays[0].shape[1:]} and x1 of {arrays[1].shape[1:]}; "
            "expected points of one space"
        )
    return arrays


def independent(x0: Points, x1: Points, *, key: mx.array | None = None):
    """Pair in the order drawn: the product coupling, where both batches are independent draws.

    `x0`: (n, ...), `x1`: (m, ...). Points of the smaller batch are repeated, as by `exact_ot`.
    """
    n, m = (len(as_points(x, name)) for x, name in ((x0, "x0"), (x1, "x1")))
    i, j = _even(n, m, None if key is None else generator(key))
    return mx.array(i), mx.array(j)


@HostCoupling
def exact_ot(x0: np.ndarray, x1: np.ndarray, *, rng: np.random.Generator | None) -> Pairs:
    """Pair by the assignment of least total squared distance: exact minibatch optimal transport.

    The optimal plan between two uniform batches of one size is a permutation, and it is used as
    one: no point is dropped or repeated (Tong et al. 2024, arXiv 2302.00482, section 3.4, where
    pairs are drawn from the plan with replacement). Points of a smaller batch are repeated until
    the batches are equal; where that does not come out even, those repeated once more are drawn
    with the key, which is required then. (A best choice of n among m points would leave out far
    ones.)
    """
    i, j = _even(len(x0), len(x1), rng)
    rows, columns = assign(squared_distances(x0[i], x1[j]))
    return i[rows], j[columns]


@dataclass(frozen=True)
class OfMeanCost:
    """A regularisation of `share` times the mean squared distance between the two batches."""

    share: float


def sinkhorn(
    reg: float | OfMeanCost = OfMeanCost(0.05),
    *,
    tolerance: float = 1e-3,
    iterations: int = 10_000,
) -> HostCoupling:
    """Make the coupling that draws from the entropic plan: least sum P c + reg KL(P | 1/n 1/m).

    0 < `reg` < infinity interpolates between exact and independent pairs (Cuturi 2013), however
    small; a number is in units of squared distance. A point far away raises the mean cost, and so
    the default for all, which is warned of: give a number then. Each point of the larger batch (of
    x0, if equal) is in one pair, and its partner is drawn from the plan with the key. `tolerance`:
    on the plan's mass that is not where it should be, of 1 (below 1e-5 float32 ends).
    `iterations`: Sinkhorn's, at most. Memory is bounded, so that 10,000 points a side and more are
    only a matter of time; above 2,000 or so a `reg` has to be 1e-6 of the largest cost. Raises
    ValueError for a `reg` that is not positive and, when called, NotConverged where the tolerance
    is not met.
    """
    return _entropic_coupling(reg, math.inf, tolerance, iterations)


def schroedinger(sigma: float, *, tolerance: float = 1e-3, iterations: int = 10_000):
    """Make the coupling of the Schroedinger bridge with diffusion `sigma`: reg = 2 sigma^2.

    The coupling that `paths.Bridge(sigma)` needs: its plan is proportional to the Brownian
    transition exp(-|x0 - x1|^2 / (2 sigma^2)) (Tong et al. 2024, arXiv 2302.00482, section 3.4).
    Options and errors as in `sinkhorn`.
    """
    expected = "a number above 0, such as 1.0"
    sigma = check_number(sigma, "sigma", expected, lambda s: 0 < s < math.inf)
    return sinkhorn(2 * sigma**2, tolerance=tolerance, iterations=iterations)


def unbalanced(
    reg_m: float | OfMeanCost = OfMeanCost(1.0),
    *,
    reg: float | OfMeanCost = OfMeanCost(0.05),
    tolerance: float = 1e-3,
    iterations: int = 10_000,
) -> HostCoupling:
    """Make the coupling that draws from an entropic plan whose marginals are held by reg_m KL.

    Points that are far from the other batch are in fewer pairs, which keeps outliers out: the
    marginals are not those of the batches (Chizat et al. 2018). `reg_m` -> infinity is `sinkhorn`.
    Points of the larger batch are in pairs in proportion to their mass in the plan, up to one
    more or less by chance. Options and errors as in `sinkhorn`.
    """
    return _entropic_coupling(reg, reg_m, tolerance, iterations)


def partial(mass: float = 0.9) -> HostCoupling:
    """Make the coupling of least total cost among those of a share `mass` of the points: exact.

    It leaves the rest of both batches out: max(n, m) points make round(mass max(n, m)) pairs, each
    point in at most one (Caffarelli & McCann 2010; here an assignment to free dummy points).
    Unequal batches as in `exact_ot`. Raises ValueError unless 0 < mass <= 1, and where no pair is
    left.
    """
    expected = "a share of the points above 0, at most 1"
    mass = check_number(mass, "mass", expected, lambda mass: 0 < mass <= 1)

    def pair(x0: np.ndarray, x1: np.ndarray, *, rng: np.random.Generator | None) -> Pairs:
        i, j = _even(len(x0), len(x1), rng)
        cost, size = squared_distances(x0[i], x1[j]), len(i)
        kept = round(mass * size)
        if kept == 0:
            raise ValueError(f"mass {mass} of {size} points is no pair; give a larger mass")
        # Each of size - kept dummies on either side takes a point of the other side for nothing;
        # two dummies never meet, as parting them also parts a real pair.
        padded = np.zeros((2 * size - kept,) * 2)
        padded[:size, :size] = cost
        padded[size:, size:] = cost.max() or 1.0
        rows, columns = assign(padded)
        real = (rows < size) & (columns < size)
        return i[rows[real]], j[columns[real]]

    return HostCoupling(pair)


def conditional(coupling: HostCoupling = exact_ot, *, weight: float = math.inf) -> HostCoupling:
    """Make `coupling` respect the data's conditions: cost + weight |y0 - y1|^2.

    x0[k] gets the condition of x1[k], in the order drawn, and keeps it as far as the weight says.
    A coupling that ignores conditions makes the source depend on them, and at sampling time it does
    not (Cheng & Schwing 2025, arXiv 2503.10636; Kerrigan et al. 2024, arXiv 2404.04240). Conditions
    are a third argument: integers (n,) are labels, whose |y0 - y1|^2 is 1 where they differ; other
    numbers (n, ...) are taken as they are: bring them to scale 1 (to length 1 for a cosine).

    An infinite weight couples within equal conditions only, exactly: the choice for labels. For
    continuous conditions a weight of 10 to 100 times the squared distances is a start. Raises
    TypeError for a coupling that is not of the host, ValueError for a weight that is not positive
    and, when called, for batches or conditions of different sizes.
    """
    if not isinstance(coupling, HostCoupling) or coupling.conditional:
        raise TypeError(
            f"cannot make {coupling} conditional; give a coupling by optimal transport, such as "
            "exact_ot or sinkhorn(). independent needs none: its pairs respect conditions"
        )
    weight = check_weight(weight)

    def pair(x0, x1, condition, *, rng: np.random.Generator | None) -> Pairs:
        if not len(x0) == len(x1) == len(condition):
            raise ValueError(
                f"x0 has {len(x0)} samples, x1 {len(x1)} and its conditions {len(condition)}; "
                "expected equal numbers, as x0[k] gets the condition of x1[k]"
            )
        y = condition_coordinates(condition)
        if weight < math.inf:
            x0, x1 = (np.hstack([_flat(x), math.sqrt(weight) * y]) for x in (x0, x1))
            return coupling.pair(x0, x1, rng=rng)
        _, kinds = np.unique(y, axis=0, return_inverse=True)
        members = [np.flatnonzero(kinds == kind) for kind in range(kinds.max() + 1)]
        pairs = [coupling.pair(x0[k], x1[k], rng=rng) for k in members]
        i, j = (
            np.concatenate([k[chosen] for k, chosen in zip(members, side, strict=True)])
            for side in zip(*pairs, strict=True)
        )
        return i, j

    return HostCoupling(pair, conditional=True)


def check_weight(weight: float) -> float:
    """Refuse what is no weight of conditions."""
    return check_number(weight, "weight", "a number above 0, or math.inf", lambda w: w > 0)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (n, m), float64, between rows of `x` (n, ...) and `y` (m, ...).

    Raises ValueError where a value is not finite.
    """
    from scipy.spatial.distance import cdist

    x, y = _flat(as_rows(x, "x")), _flat(as_rows(y, "y"))
    if x.shape[1] <= FEW_COLUMNS:
        cost = cdist(x, y, "sqeuclidean")
        check_finite(cost.max())
        return cost
    # Distances are unchanged by a shift, and centring keeps x^2 + y^2 - 2xy from cancelling.
    centre = y.mean(0)
    near, far = x - centre, y - centre
    near_squares, far_squares = (near**2).sum(1), (far**2).sum(1)
    cost = products(-2 * near, far)
    cost += near_squares[:, None]
    cost += far_squares
    largest = near_squares.max() + far_squares.max()
    check_finite(largest)
    if not cost.min() > CANCELLED * largest:
        # Where it cancels all the same, as between points that are close, or beside one far away.
        cancelled = cost <= CANCELLED * (near_squares[:, None] + far_squares)
        for i in np.flatnonzero(cancelled.any(1)):
            j = np.flatnonzero(cancelled[i])
            cost[i, j] = cdist(x[i : i + 1], y[j], "sqeuclidean")[0]
    return cost


def _flat(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(len(x), -1)


def check_finite(*numbers: float) -> None:
    """Refuse points by numbers that are finite only where the points are."""
    if not np.isfinite(numbers).all():
        raise ValueError(
            "the points to couple contain NaN or infinity, or squares beyond float64; clean them"
        )


def condition_coordinates(condition: np.ndarray) -> np.ndarray:
    """Conditions as points (n, k) whose squared distances enter the cost; labels are 1 apart."""
    condition = as_rows(condition, "condition")
    if condition.ndim == 1 and condition.dtype.kind in "biu":
        _, labels = np.unique(condition, return_inverse=True)
        return np.eye(labels.max() + 1)[labels] / math.sqrt(2)
    y = _flat(condition)
    if not np.isfinite(y).all():
        raise ValueError("the conditions contain NaN or infinity; clean the data first")
    return y


def _even(n: int, m: int, rng: np.random.Generator | None) -> Pairs:
    """Indices that repeat the points of the smaller batch: (i, j), each of length max(n, m)."""
    return _copies(n, max(n, m), rng), _copies(m, max(n, m), rng)


def _copies(n: int, size: int, rng: np.random.Generator | None) -> np.ndarray:
    """Repeat range(n) to `size` indices: whole copies, and a random choice for the rest."""
    whole, rest = divmod(size, n)
    copies = np.tile(np.arange(n), whole)
    return np.append(copies, required(rng).choice(n, rest, replace=False)) if rest else copies


def required(rng: np.random.Generator | None) -> np.random.Generator:
    """Return the generator that pairs are drawn with; ValueError where no key was given."""
    if rng is None:
        raise ValueError("pairs are drawn at random here; pass key=mx.random.key(...)")
    return rng


def _entropic_coupling(reg, reg_m, tolerance: float, iterations: int) -> HostCoupling:
    for name, value in (("reg", reg), ("reg_m", reg_m)):
        if isinstance(value, OfMeanCost):
            name, value = f"{name}.share", value.share
        check_number(value, name, "a number above 0, or OfMeanCost(0.05)", lambda r: r > 0)
    tolerance = check_number(tolerance, "tolerance", "a number above 0", lambda tol: tol > 0)
    iterations = check_count(iterations, "iterations")

    def pair(x0: np.ndarray, x1: np.ndarray, *, rng: np.random.Generator | None) -> Pairs:
        if len(x0) < len(x1):
            j, i = pair(x1, x0, rng=rng)
            return i, j
        x0, x1, rng = _flat(x0), _flat(x1), required(rng)
        scale = _mean_cost(x0, x1) or 1.0  # zero where all points are one
        if OfMeanCost in (type(reg), type(reg_m)):
            _warn_of_far_points(x0, x1, scale)
        eps, held = (r.share * scale if isinstance(r, OfMeanCost) else r for r in (reg, reg_m))
        find = _kept_plan if len(x0) * len(x1) <= entropic.KEPT else _streamed_plan
        costs, rows = find(x0, x1, eps, reg_m=held, tolerance=tolerance, iterations=iterations)
        i = np.arange(len(x0))
        if held < math.inf:
            i = _resample(np.exp(-rows / held), rng)
        return i, entropic.draw(costs, i, np.zeros(len(x1)), 1.0, rng=rng)

    return HostCoupling(pair)


def _mean_cost(x0: np.ndarray, x1: np.ndarray) -> float:
    """Mean of the squared distances, without computing them."""
    check_finite(x0.sum(), x1.sum())
    mean = x0.var(0).sum() + x1.var(0).sum() + ((x0.mean(0) - x1.mean(0)) ** 2).sum()
    check_finite(mean)
    return float(mean)


def _warn_of_far_points(x0: np.ndarray, x1: np.ndarray, mean: float) -> None:
    centre = np.median(x1, axis=0)
    typical = sum(np.median(((x - centre) ** 2).sum(1)) for x in (x0, x1))
    if mean > FAR * typical > 0:
        warnings.warn(
            f"points far away make the mean cost {mean:.3g}, where {typical:.3g} is typical; a "
            "regularisation that is a share of the mean pairs all the others at random: give it as "
            f"a number, such as {0.05 * typical:.2g}, or clean the data",
            stacklevel=4,
        )


def _kept_plan(
    x0: np.ndarray, x1: np.ndarray, reg: float, **options
) -> tuple[entropic.RowCosts, np.ndarray]:
    """Costs less column potentials, in units of `reg`, and row potentials."""
    found = plans.solve(squared_distances(x0, x1), reg, **options)
    costs = found.costs  # of this plan alone
    costs -= found.columns
    scaled = _in_units(costs, reg)
    return lambda rows: scaled[rows], found.rows


def _streamed_plan(
    x0: np.ndarray, x1: np.ndarray, reg: float, *, reg_m: float, **options
) -> tuple[entropic.RowCosts, np.ndarray]:
    """As `_kept_plan`, of a plan too large for memory: costs are computed when asked for."""
    scale, centre = _mean_cost(x0, x1), x1.mean(0)
    largest = 2 * sum(((x - centre) ** 2).sum(1).max() for x in (x0, x1))
    if reg < RESOLVED * largest:
        raise entropic.NotConverged(
            f"a plan between {len(x0)} and {len(x1)} points is computed in float32, which does not "
            f"resolve a reg of {reg:.3g} beside costs up to {largest:.3g}; give a larger reg, or "
            "take exact_ot or smaller batches"
        )

    def costs(rows: slice | np.ndarray, unit: float, columns: np.ndarray | float) -> np.ndarray:
        return _in_units(squared_distances(x0[rows], x1) - columns, unit)

    rows, columns = entropic.potentials(
        lambda rows: costs(rows, scale, 0.0),
        (len(x0), len(x1)),
        reg / scale,
        reg_m=reg_m / scale,
        **options,
    )
    return lambda k: costs(k, reg, scale * columns), scale * rows


def _in_units(cost: np.ndarray, unit: float) -> np.ndarray:
    scaled = np.empty(cost.shape, np.float32)
    with np.errstate(over="ignore"):
        np.divide(cost, unit, out=scaled, casting="same_kind")
    return np.minimum(scaled, 1e30, out=scaled)


def _resample(mass: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw len(mass) indices in proportion to `mass`, each its share up to one (systematic)."""
    cumulated = np.cumsum(mass)
    if not cumulated[-1] > 0:
        raise entropic.NotConverged("the plan has no mass left; give a larger reg_m")
    levels = (np.arange(len(mass)) + rng.random()) * (cumulated[-1] / len(mass))
    return np.minimum(np.searchsorted(cumulated, levels, side="right"), len(mass) - 1)


COUPLINGS: dict[str, Coupling] = {
    "independent": independent,
    "exact_ot": exact_ot,
    "sinkhorn": sinkhorn(),
    "unbalanced": unbalanced(),
    "partial": partial(),
}

# Couplings that are made for a path's sigma.
SIGMA_COUPLINGS: dict[str, Callable[[float], HostCoupling]] = {"schroedinger": schroedinger}
