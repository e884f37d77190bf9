"""Entropic plans of a matrix of costs, with any regularisation.

Sinkhorn's algorithm in float32 (`entropic`) is fast where the regularisation is a good part of the
costs. Below 1e-4 of the largest one it takes thousands of rounds, and float32 rounds away what
decides. There the potentials are found by Newton's method in float64. It starts from those of the
exact plan, to which the entropic one is close, and costs are counted from them: so what a point far
away costs does not round those of the others.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flowmlx.solvers.arrays import as_rows, check_number, describe
from flowmlx.transport import entropic
from flowmlx.transport.assignment import reduced_costs
from flowmlx.transport.entropic import NotConverged
from flowmlx.transport.products import products

# Part of the largest cost below which a regularisation is for Newton's method: from there it takes
# less time than Sinkhorn's rounds.
SMALL = 1e-4
# Points of a side up to which there is an exact plan to start from, in some ten seconds.
MOST_POINTS = 4096
# Of Newton's method: steps in all; the longest one, in units of the regularisation, which is the
# length in which curvature changes; the factor between levels of the regularisation, and the error
# that each is left at.
STEPS, LONGEST, ANNEALING, WARM = 1_000, 20, 4, 0.02


class Plan(NamedTuple):
    """P_ij = exp((rows_i + columns_j - costs_ij) / reg) / (n m).

    `costs`: (n, m), those that were given, or less the potentials of an exact plan. `rows` (n,),
    `columns` (m,): potentials of these costs.
    """

    costs: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


def solve(
    cost: np.ndarray,
    reg: float,
    *,
    reg_m: float = math.inf,
    tolerance: float = 1e-3,
    iterations: int = 10_000,
) -> Plan:
    """Find the entropic plan of `cost` (n, m), finite; options and errors as `entropic.potentials`.

    `reg`, `reg_m`: in units of `cost`. `iterations`: rounds of Sinkhorn's algorithm.
    """
    if reg < SMALL * cost.max() and max(cost.shape) <= MOST_POINTS:
        return _by_newton(cost, reg, reg_m, tolerance)
    scale = cost.mean() or 1.0  # zero where all points are one
    relative = np.empty(cost.shape, np.float32)
    np.divide(cost, scale, out=relative, casting="same_kind")
    found = entropic.potentials(
        lambda rows: relative[rows],
        cost.shape,
        reg / scale,
        reg_m=reg_m / scale,
        tolerance=tolerance,
        iterations=iterations,
    )
    return Plan(cost, scale * found.rows, scale * found.columns)


def plan(
    cost: np.ndarray, reg: float, *, reg_m: float = math.inf, tolerance: float = 1e-3
) -> np.ndarray:
    """Return the entropic plan (n, m), float64, of a matrix of costs (n, m), finite.

    `reg`, `reg_m`: in the units of the cost. Raises as `entropic.potentials` does, and NotConverged
    where float32 costs do not determine the plan.
    """
    from scipy.special import logsumexp

    cost = as_rows(cost, "cost", np.float64)
    if cost.ndim != 2 or not cost.size or not np.isfinite(cost).all():
        raise ValueError(f"cost is {describe(cost)}; expected finite costs (n, m)")
    reg = entropic.check_reg(reg)
    reg_m = check_number(reg_m, "reg_m", "a number above 0", lambda reg: reg > 0)
    costs, _, columns = solve(cost, reg, reg_m=reg_m, tolerance=tolerance)
    # The rows once more in float64, for which their mass is exact and only the columns' may err.
    exponents = (columns - costs) / reg
    mass = logsumexp(exponents, axis=1, keepdims=True) - math.log(len(columns))
    found = np.exp(exponents - mass / (1 + reg / reg_m)) / cost.size
    error = np.abs(found.sum(0) - np.exp(-columns / reg_m) / len(columns)).sum()
    if not error <= 2 * tolerance:
        raise NotConverged(
            f"a Sinkhorn plan misses its marginals by {error:.2g} (tolerance {tolerance:.2g}) at "
            f"reg {reg:.3g}, which float32 costs of mean {cost.mean():.3g} do not resolve; give a "
            "larger reg, or take the exact plan"
        )
    return found


def _by_newton(cost: np.ndarray, reg: float, reg_m: float, tolerance: float) -> Plan:
    """Maximise the dual over column potentials, with those of the rows the best for them.

    Between held marginals from the exact plan. Else, where that may be far, from a plan with more
    and more of the regularisation taken away.
    """
    if not 0 < reg < math.inf:
        raise ValueError(f"reg is {reg!r}; expected a finite number above 0")
    balanced = reg_m == math.inf
    costs = reduced_costs(cost) if balanced else cost
    levels = [reg] if balanced else list(_annealing(min(cost.mean(), 10 * reg_m), reg))
    dual, steps = _Dual.at(np.zeros(cost.shape[1]), costs, levels[0], reg_m), 0
    for level in levels:
        # A round of Sinkhorn's goes any way in one: that of columns far from all rows is long.
        columns = _Dual.at(dual.rows, costs.T, level, reg_m).rows
        dual = _Dual.at(columns, costs, level, reg_m)
        goal = tolerance if level == reg else max(tolerance, WARM)
        while not dual.error <= goal:
            following = _step(dual, costs, level, reg_m)
            steps += 1
            if following is None or steps >= STEPS:
                raise NotConverged(
                    f"an entropic plan misses its marginals by {dual.error:.2g} (tolerance "
                    f"{goal:.2g}) after {steps} steps of Newton's method at reg {level:.3g}, with "
                    f"costs up to {cost.max():.3g}; give a larger reg (here {reg:.3g}) or a larger "
                    "tolerance, or take the exact plan"
                )
            dual = following
    return Plan(costs, dual.rows, dual.columns)


def _annealing(start: float, reg: float) -> Iterator[float]:
    while start > reg:
        yield start
        start /= ANNEALING
    yield reg


class _Dual(NamedTuple):
    """The dual at column potentials: row potentials, the value, and its slope in the columns.

    `shares`: (n, m), what parts of a row's mass go to each column; `mass`: (n,), of rows.
    """

    columns: np.ndarray
    rows: np.ndarray
    shares: np.ndarray
    mass: np.ndarray
    value: float
    slope: np.ndarray

    @property
    def error(self) -> float:
        """Sum over columns of the difference between the plan's mass and its target."""
        return float(np.abs(self.slope).sum())

    @classmethod
    def at(cls, columns: np.ndarray, costs: np.ndarray, reg: float, reg_m: float) -> "_Dual":
        n, m = costs.shape
        shares = (columns - costs) / reg
        top = shares.max(1)
        shares -= top[:, None]
        np.exp(shares, out=shares)
        total = shares.sum(1)
        shares /= total[:, None]
        least = -reg * (np.log(total / m) + top)
        rows = least / (1 + reg / reg_m)
        with np.errstate(over="ignore"):  # infinitely bad: the step is shortened
            mass = np.exp((rows - least) / reg) / n
            value = _gain(rows, reg_m) + _gain(columns, reg_m) - reg * mass.sum()
            slope = np.exp(-columns / reg_m) / m - mass @ shares
        return cls(columns, rows, shares, mass, value, slope)


def _gain(potentials: np.ndarray, reg_m: float) -> float:
    if reg_m == math.inf:
        return float(potentials.mean())
    return float(-reg_m * np.expm1(-potentials / reg_m).mean())


def _step(dual: _Dual, costs: np.ndarray, reg: float, reg_m: float) -> _Dual | None:
    """A step of Newton's method, shortened until the dual rises; None where it does not."""
    m, held = costs.shape[1], np.exp(-dual.columns / reg_m)
    flat = (dual.shares * np.sqrt(dual.mass)[:, None]).T
    curvature = products(flat, flat)
    curvature /= -(1 + reg / reg_m)
    curvature.flat[:: m + 1] += dual.mass @ dual.shares + held * (reg / reg_m / m) + 1e-14 / m
    if reg_m == math.inf:
        curvature += 1 / m**2  # no slope along a shift of all
    step = reg * np.linalg.solve(curvature, dual.slope)
    step *= min(1, LONGEST * reg / np.abs(step).max())
    rise = dual.slope @ step
    for _ in range(40):
        new = _Dual.at(dual.columns + step, costs, reg, reg_m)
        if new.value >= dual.value + 1e-4 * rise - 1e-14 * abs(dual.value):
            return new
        step, rise = step / 2, rise / 2
    return None
