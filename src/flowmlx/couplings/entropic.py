"""Couplings that draw pairs from an entropic transport plan."""

import math
import warnings
from dataclasses import dataclass

import numpy as np

from flowmlx.couplings.host import HostCoupling, Pairs, required
from flowmlx.solvers.arrays import check_count, check_number
from flowmlx.transport import entropic, plans
from flowmlx.transport.costs import flat_rows, mean_cost, squared_distances

# Mean cost in units of a typical one from which a few points make all of it.
FAR = 1e3
# Part of the largest cost below which float32 does not resolve a regularisation.
RESOLVED = 1e-6


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
    """Make the coupling that draws pairs from the entropic plan (Sinkhorn's algorithm).

    The plan P minimises sum P c + reg KL(P | 1/n 1/m), where c are squared distances. Each point of
    the larger batch (of x0, if the sizes are equal) is in one pair; its partner is drawn from the
    plan with the key. `reg`: a number above 0 in units of squared distance, or `OfMeanCost`, a
    share of the mean squared distance. With a small `reg` the plan is close to exact transport,
    with a large one to independent pairs (Cuturi 2013). A point that is far away increases the
    mean, and thus the regularisation for all others; a warning then says so, and a number is
    better. `tolerance`: largest share of the plan's mass that may violate the marginals, at least
    1e-5. `iterations`: largest number of iterations.

    Memory is bounded, so that batches of 10,000 points and more are possible, but slow. For more
    than about 2,000 points, `reg` must be at least 1e-6 of the largest cost. Raises ValueError for
    a `reg` that is not positive and, when called, NotConverged if the tolerance is not reached.
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

    Points far from the other batch are in fewer pairs, which keeps outliers out (Chizat et al.
    2018). How often a point of the larger batch is paired goes with its mass in the plan, up to one
    more or less by chance. `reg_m`: strength of the penalty, in the units of `reg`; `sinkhorn` is
    the limit of a large one. Other options and errors as in `sinkhorn`.
    """
    return _entropic_coupling(reg, reg_m, tolerance, iterations)


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
        x0, x1, rng = flat_rows(x0), flat_rows(x1), required(rng)
        scale = mean_cost(x0, x1) or 1.0  # zero where all points are one
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
    scale, centre = mean_cost(x0, x1), x1.mean(0)
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
